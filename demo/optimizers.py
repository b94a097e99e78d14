"""Muon for stacks of matrices, and AdamW beside it for everything else."""

import torch


def pick_dtype(device: torch.device) -> torch.dtype:
    """Returns what to compute in: bfloat16, or float32 on a CPU that only emulates it."""
    emulated = device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal (K. Jordan and others, 2024), on stacks of matrices of one shape.

    `torch.optim.Muon` takes one matrix at a time, which on a CPU costs as much as the step it serves; the arithmetic is
    the same: Nesterov momentum, a quintic Newton-Schulz iteration in bfloat16, steps scaled to AdamW's size.
    """

    def __init__(
        self, matrices: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ):
        by_shape: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
        groups = [{"params": same} for same in by_shape.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Takes one step; every matrix needs a gradient."""
        for group in self.param_groups:
            stack = torch.stack([p.grad for p in group["params"]])
            state = self.state[group["params"][0]]
            momentum = state.setdefault("momentum", torch.zeros_like(stack))
            momentum.lerp_(stack, 1 - group["momentum"])
            update = orthogonal(stack.lerp(momentum, group["momentum"]).to(pick_dtype(stack.device))).float()
            rate = group["lr"] * 0.2 * max(stack.shape[1:]) ** 0.5
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(group["params"], list(update), alpha=-rate)


def orthogonal(stack: torch.Tensor, rounds: int = 4) -> torch.Tensor:
    """Brings the singular values of each matrix of a stack [N, out, in] near 1."""
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (x.float().square().sum((1, 2), keepdim=True).sqrt() + 1e-7).to(x.dtype)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Optimizers:
    """Muon for the matrices inside the two transformers, AdamW for embeddings, norms, biases and the patches."""

    def __init__(self, modules: list[torch.nn.Module], rate: float):
        matrices, others = [], []
        for module in modules:
            for name, parameter in module.named_parameters():
                inside = "layers." in name or "mm_input_projection" in name
                (matrices if inside and parameter.ndim == 2 else others).append(parameter)
        self.all: list[torch.optim.Optimizer] = [Muon(matrices, lr=rate)] if matrices else []
        self.all.append(torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0))
        self.rate = rate

    def step(self, share: float) -> None:
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)
