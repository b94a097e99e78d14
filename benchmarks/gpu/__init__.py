"""The parts of bench_gpu and tune_gpu.

products            the products of a model: shapes, random matrices
checks              a product against float64
clock               seconds and memory of one device
kernels, peers      every product beside others' kernels
models, generation  whole models: random weights; prefill and decode
tuning              every plan for a product, and the fastest written down
"""
