"""Runs one training on several hosts.

    process_ids.from_flags(...)     this process' number, from flags; `from_environment`: from the TPU environment
    supervisor.run(...)             one supervisor a process; it never touches JAX
      preflight.assemble(...)       all have the same config, code and packages, or a line names who does not
      the training, a child         joins the others through `fot_jax.distributed`
      preflight.Watch               a process that fails or dies ends all others, which print its name

JAX itself ends a process by abort() when another is lost: only a separate process can say why in one line.
"""
