"""A machine that executes the kernels' compiled code without a GPU, and stops where a GPU would.

``program`` reads PTX, ``instructions`` says what each instruction computes, ``memory`` watches every access,
``machine`` runs the threads, and ``plugin`` puts it where Triton looks for a GPU: any test of a Triton kernel then runs
on it.

It does not see how long anything takes, nor races for shared memory, whose barriers are the compiler's.
"""
