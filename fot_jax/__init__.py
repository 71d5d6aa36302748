"""The Focused Transformer (FoT) in JAX.

The pipeline in eight lines:

    configs/NAME.py   -> config.build              an experiment as frozen dataclasses
    files             -> data.documents            seqio tasks, token cache, whole documents held out
    documents         -> data.batches              each row keeps its document; a batch is f(seed, step)
    d of the step     -> ops.plans.make_plan       context_ids[B, C]: which row reads which
    batch, plan       -> models.transformer        local ∪ contexts in one softmax: ops.crossbatch
    loss              -> train.loop, checkpoint    jitted step, Orbax state and data position
    long input        -> infer.windows, memory     windows into a memory: dense, exact top-k, ScaNN
    trained runs      -> eval                      loss against memory size, r_d, dictionary accuracy

README.md has a table from the paper (arXiv 2307.03170) to the code and its tests;
docs/differences.md lists the conventions in which the authors' code differs.
Importing this package imports nothing else; the first part that computes imports JAX.
"""
