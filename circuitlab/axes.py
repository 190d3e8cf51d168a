"""The words for tensor axes, used in every shape annotation and einsum of the library.

Row 0: the standard library only. `docs/conventions.md` shows this table; a test holds the two together.
"""

AXES: dict[str, str] = {
    "batch": "examples of one length",
    "row": "examples times variants (patches, circuits) in one packed run",
    "seq": "token positions, beginning-of-sequence token included where there is one",
    "asking": "the last tokens of a prompt, whose queries are given",
    "d_model": "width of the residual stream",
    "head": "query heads of one layer",
    "kv_head": "key/value heads of one layer",
    "d_head": "width of one head",
    "d_vocab": "tokens of the vocabulary",
    "writer": "nodes that add to the stream: input, heads, MLPs",
    "reader": "places that read the stream: head slots q, k, v, MLPs, logits",
    "token": "tokens of several rows, one after the other (ragged)",
    "neuron": "neurons of one MLP: what goes into its output projection",
    "feature": "features of one sparse autoencoder",
    "d_in": "width of what a sparse autoencoder reads",
    "word": "chosen tokens of the vocabulary",
    "circuit": "edge masks evaluated together",
    "text": "texts of any length",
    "series": "kinds of values over one text, such as neurons",
    "part": "some rows of a long list, done at once",
    "point": "places along the residual stream, from the embedding to the end",
    "component": "what adds to a logit: embeddings, heads, MLPs, neurons, biases",
    "query": "tokens that look",
    "key": "tokens that are looked at",
    "sample": "draws of noise added to one input",
    "step": "steps of a search",
    "answer": "right (or wrong) answer tokens of an example",
}
