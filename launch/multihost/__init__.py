"""One run on several hosts.

    seats.find(...)                 this process' number, from flags or from the TPU environment
    supervisor.run(...)             one supervisor a process; it never touches JAX
      roll_call.assemble(...)       all there, same config, code and packages, or one line that names who is not
      the training, a child         joins the others through `fot_jax.distributed`
      roll_call.Watch               a process that fails or dies ends all others, with its name

JAX itself ends a process by abort() when another is lost: only a process beside it can say why in one line.
"""
