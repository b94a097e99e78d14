"""What the commands' options can name; light, for their parsers."""

NAMES = ["270m", "1b", "4b", "12b", "27b"]  # the published sizes
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # of activations, on a GPU
PEERS = ("cublas", "torch_int4", "gemlite")  # of a product on a GPU
