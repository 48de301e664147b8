"""What a model weighs and computes, exact, in parameters, derived from the model's own modules.

    source.py      the name in a study -> where the weights are, and what identifies them
    build.py       a configuration -> the model on the meta device, without weights
    classify.py    every parameter -> its tensor class and layer
    mixers.py      one attention or linear mixer -> KV, state and score FLOPs; a new mixer kind is added there
    shape.py       an instantiated model -> ModelShape
    accounting.py  ModelShape -> totals, bytes and FLOPs; plain arithmetic

`source` and `accounting` load neither torch nor transformers. Nothing here measures, and nothing knows an engine.
"""
