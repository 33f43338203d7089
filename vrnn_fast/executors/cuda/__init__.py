"""What the CUDA executor will be made of. Not an executor yet: nothing registers it.

Read csrc/cuda/device/device.h (what a kernel may know of the machine), then build.py.
"""
