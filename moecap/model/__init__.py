"""What a model weighs and computes, exact, in parameters, derived from the model's own modules.

    source.py        the name in a study -> where the weights are, and what identifies them
    hub.py           a Hugging Face id -> the commit that it stands for
    build.py         a configuration -> the model on the meta device, without weights
    classify.py      every parameter -> its tensor class and layer
    mixers.py        one attention or linear mixer -> KV, state and score FLOPs; a new mixer kind is added there
    activations.py   elements that a token's operators move
    shape.py         an instantiated model -> ModelShape
    quantization.py  quantization_config -> which matrices are packed, and into how many bytes
    stored.py        modules and configuration -> bytes of a checkpoint by tensor class
    widths.py        bytes of one element of a dtype
    cards.py         shape cards of well-known models, kept in catalogue/
    accounting.py    ModelShape -> totals, bytes and FLOPs; plain arithmetic
    describe.py      a name -> all of that in one document

`source`, `cards`, `accounting` and, for models with a card, `describe` load neither torch nor transformers. Nothing
here measures, and nothing knows an engine.
"""
