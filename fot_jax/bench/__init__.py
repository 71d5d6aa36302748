"""Programs to time, each with its FLOPs or bytes by formula; `launch/bench.py` runs and reports them.

steps      the training step: plain, and crossbatch with each backend at several d
authors    training steps at the shapes at which the authors' own code was measured, with that record
reading    texts of several lengths, window by window into memory
decoding   one token after another, with memories of several sizes and each retrieval
pipeline   batches of the configured data, on the host alone
machine    what the machine does at best: a matrix product, a pass over memory
"""
