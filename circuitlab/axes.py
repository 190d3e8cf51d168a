"""The words for tensor axes, used in every shape annotation and einsum of the library.

Row 0: the standard library only. `docs/conventions.md` shows this table; a test holds the two together.
"""

AXES: dict[str, str] = {
    "batch": "examples of one length",
    "row": "examples times variants (patches, circuits) in one packed run",
    "seq": "token positions, including a beginning-of-sequence token, if any",
    "asking": "the last tokens of a prompt, as queries",
    "d_model": "width of the residual stream",
    "head": "query heads of one layer",
    "kv_head": "key/value heads of one layer",
    "d_head": "width of one head",
    "d_vocab": "tokens of the vocabulary",
    "writer": "nodes that write to the residual stream: input, heads, MLPs",
    "reader": "inputs that read the residual stream: head slots q, k, v, MLPs, logits",
    "token": "tokens of several rows, concatenated (ragged)",
    "neuron": "neurons of one MLP: inputs of its output projection",
    "feature": "features of one sparse autoencoder",
    "d_in": "input width of a sparse autoencoder",
    "word": "chosen tokens of the vocabulary",
    "circuit": "edge masks evaluated together",
    "text": "texts of any length",
    "series": "kinds of values over one text, such as neurons",
    "part": "a chunk of a long list of rows",
    "point": "points along the residual stream, from the embedding to the end",
    "component": "contributions to a logit: embeddings, heads, MLPs, neurons, biases",
    "query": "query tokens of attention",
    "key": "key tokens of attention",
    "sample": "draws of noise added to one input",
    "step": "steps of a search",
    "answer": "right (or wrong) answer tokens of an example",
}
