"""What patches would bring by the slope: every writer's and neuron's difference times the gradient where it is read."""
