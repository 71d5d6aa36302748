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

From the paper (arXiv 2307.03170) to the code and its test:

    eq. (1), sec. 3.1    ops.memory_attention.topk_memory_partial    tests/paper/test_equation_1_memory_attention.py
    eq. (2), sec. 3.2    ops.crossbatch.crossbatch_attention         tests/paper/test_equation_2_crossbatch.py
    sec. 3.3, r_d        eval.attention_mass.own_share               tests/paper/test_distraction.py
    app. B.3, (w, d)     ops.plans.two_pass_plan                     tests/ops/test_plans.py
    LongLLaMA segments   ops.plans.segments_plan                     tests/ops/test_plans.py
    authors' range       ops.plans.constant_range_plan               tests/ops/test_plans.py
    app. B.3, D, d       train.context_schedule.ContextSchedule      tests/train/test_context_schedule.py
    app. B.1, models     models.layers.Projections                   tests/models/test_transformer.py
    app. B.1, optimizer  train.optimizer.make_optimizer              tests/train/test_optimizer.py
    sec. 3.1, windows    infer.windows.read                          tests/infer/test_windows.py
    app. B.2, memory     memory.store.MemoryStore                    tests/memory/test_store.py
    table 4, context     eval.context.measure                        tests/eval/test_context.py
    MT's gate (sec. 5)   ops.memory_attention.gated_merge            tests/ops/test_memory_attention.py
    fig. 4, app. D       data.synthetic.episode                      tests/data/test_synthetic.py
    fig. 4, accuracy     eval.lookup.measure                         tests/eval/test_lookup.py
    fig. 5, multi-doc    eval.perplexity.measure_documents           tests/eval/test_perplexity.py
    fig. 1, passkey      eval.passkey.measure                        tests/eval/test_passkey.py

docs/differences.md lists the conventions in which the authors' code differs.
Importing this package imports nothing else; the first part that computes imports JAX.
"""
