"""The external memory of inference: a host store, its files, and the views that memory layers read.

    store = MemoryStore.for_model(config, streams=B)      keys and values of every read token
    source = ViewSource(store, memory_config)             dense | exact top-k | ScaNN
    view = source.view()                                  a pytree; Decoder(...)(tokens, memory=view)

`files` saves and loads a store; `fingerprint` identifies the model that wrote it.
"""
