"""Programs to time, each with what it computes by formula; `launch/bench.py` runs and reports them.

steps      the training step: plain, and crossbatch in each form at several d
reading    texts of several lengths, window by window into memory
decoding   one token after another, with memories of several sizes and each retrieval
pipeline   batches of the configured data, on the host alone
machine    what the machine itself does: a matrix product, a pass over memory
"""
