"""What a recipe takes before it is run: memory, time and cost, from shapes and measured kernels.

Nothing here imports PyTorch: a plan is arithmetic on the options of a recipe, the shape of a model
(`shapes.py`) and the devices of a cluster (`hardware.py`).
"""
