"""What single neurons of MLPs do: read off the weights, off a text, off a corpus, and by changing them."""
