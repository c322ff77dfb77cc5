import torch

# one thread for each test process: pytest-xdist runs several, and two threads on a busy core wait for each other
torch.set_num_threads(1)
