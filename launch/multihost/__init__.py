"""Runs one training on several hosts.

    seats.from_flags(...)           this process' number, from flags; `from_environment`: from the TPU environment
    supervisor.run(...)             one supervisor a process; it never touches JAX
      roll_call.assemble(...)       preflight: all have the same config, code and packages, or a line names who does not
      the training, a child         joins the others through `fot_jax.distributed`
      roll_call.Watch               a process that fails or dies ends all others, which print its name

JAX itself ends a process by abort() when another is lost: only a separate process can say why in one line.
"""
