import os

os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, and equal thread counts make equal bits

import torch  # noqa: E402

torch.set_num_threads(1)
