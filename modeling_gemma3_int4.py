# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Gemma 3 on Google's QAT INT4 weights, in AWQ format: what `trust_remote_code=True` runs.

    model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True)

The four classes are transformers' own Gemma 3, with and without an output head, with int4 modules in place of the
language model's linear layers and of the tied embedding. This file loads and saves. `int4_layers.py` has the modules;
`int4_backend.py` chooses what multiplies, and on a GPU `int4_record.py` has it proven first; `int4_fused.py` has what
computes around the products, `int4_attention.py` the attention; `int4_codes.py` says what an int4 weight is.

Loading goes around transformers' own AWQ support, which needs gptqmodel and casts to float16, in which Gemma 3
overflows: `quantization_config` is put aside on a copy of the config while the stock loader runs, and put back after.

transformers 4 copies only those files out of a folder that this one names, and must get as far as `int4_versions`:
    from .int4_backend import ...
    from .int4_cache import ...
    from .int4_compiled import ...
    from .int4_cpu_aten import ...
    from .int4_cpu_attention import ...
    from .int4_cpu_build import ...
    from .int4_cpu_fused import ...
    from .int4_cpu_hardware import ...
    from .int4_cpu_library import ...
    from .int4_cpu_native import ...
    from .int4_cpu_source import ...
    from .int4_gpu_aten import ...
    from .int4_gpu_fused import ...
    from .int4_gpu_kernels import ...
    from .int4_gpu_triton import ...
    from .int4_gpu_tuning import ...
    from .int4_masks import ...
    from .int4_operator import ...
    from .int4_prefill import ...
    from .int4_proof import ...
    from .int4_prove import ...
    from .int4_training import ...
    from .int4_trial import ...
    from .int4_weight import ...
"""

# First of all: it refuses other versions of transformers and torch.
from .int4_versions import RANGES  # noqa: F401

# isort: split
import copy
import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Gemma3ForCausalLM as StockForCausalLM
from transformers import Gemma3ForConditionalGeneration as StockForConditionalGeneration
from transformers import Gemma3Model as StockModel
from transformers import GenerationMixin
from transformers.utils import logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from .int4_attention import IMPLEMENTATION
from .int4_backend import asking_for, choose_backend
from .int4_cache import use_rings
from .int4_codes import GROUP_SIZE, recover_codes
from .int4_config import PICTURES, TEXT
from .int4_cpu_native import NativeCpu
from .int4_fused import use_fused_modules
from .int4_layers import AwqLinear, Int4Embedding, Int4Linear, Int4LMHead, PackedEmbedding, exchange, prepare_linears
from .int4_memory import bytes_needed, check_memory
from .int4_prefill import Gemma3TextModel as ChunkedTextModel
from .int4_record import report, settle_backends
from .int4_repacking import recover, repacking
from .int4_saving import ADAPTER_CONFIG, INDEX, SIDE_FILE, push, replacing
from .int4_training import announce_training
from .int4_versions import cache_among

logger = logging.get_logger(__name__)

# What the one supported AWQ flavour says of itself.
SUPPORTED = {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "version": "gemm", "zero_point": True}
# Names on disk -> names in transformers 5. The dots are not escaped because 5.0 reverses a pattern literally.
KEY_MAPPING = {
    "^language_model.lm_head": "lm_head",
    "^language_model.model": "model.language_model",
    "^vision_tower": "model.vision_tower",
    "^multi_modal_projector": "model.multi_modal_projector",
}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# In the names of tensors of adapters that are in the model.
PEFT_TENSOR = re.compile(r"\.(lora_|modules_to_save\.|original_module\.)")
# Parameters of so many bytes stay in their mapped file, as a stock model's do, where nothing else of it has been read
# through the same mapping: a vision tower, which is a quarter of a 4B's memory.
MAPPED = 1 << 20
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I32": torch.int32}


class Int4LoadError(Exception):
    """These weights cannot be loaded as asked. (No OSError, ValueError, TypeError or RuntimeError: `pipeline` catches
    those and goes on to the stock class, whose own complaint would hide this one.)"""


@dataclass(frozen=True)
class Int4Checkpoint:
    """What a checkpoint holds as int4. Travels from `from_pretrained` to `__init__` as an attribute of the config."""

    keep: tuple[str, ...]  # parts of the names of modules that stay plain
    packed_embedding: bool  # the embedding is stored as int4
    scale_dtypes: Mapping[str, torch.dtype]  # of `<module>.scales`, by its name in the model
    ahead: Mapping[str, Mapping[str, torch.Tensor]]  # what AwqLinears hold that transformers need not load

    def __deepcopy__(self, memo) -> "Int4Checkpoint":
        return self  # transformers copies configs


class _Int4Gemma3:
    """Loading and saving, shared by the four classes below."""

    _prefix = ""  # what the names of the tensors of a model without output head lack

    def __init__(self, config, *args, **kwargs):
        checkpoint = config.__dict__.pop("_int4_checkpoint", None)
        if checkpoint is None:
            raise Int4LoadError(
                f"{type(self).__name__} of Gemma 3 INT4 is made by from_pretrained alone, from the weights of a repo. "
                "For random weights take the config without its quantization_config and transformers' own class."
            )
        super().__init__(config, *args, **kwargs)
        self._int4_source = self._int4_backend_asked = None  # of from_pretrained, for a move to another device
        self._build_int4_modules(checkpoint)
        self.post_init()  # again: the modules that it looks at have changed

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        config=None,
        int4_embedding=None,
        int4_backend=None,
        int4_proof=None,
        **kwargs,
    ):
        """Load a repo that `convert_flax.py` (or `save_pretrained`) wrote.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            int4_embedding: True: the embedding and the output head compute from int4 codes; an error where the repo
                does not allow it. False: keep the plain embedding. None (default): int4 where the repo allows it.
            int4_backend: name of the backend to use, as in GEMMA3_INT4_BACKEND; None (default): on CPUs by rule, on
                accelerators the fastest of those that are proven to be right (`int4_report`).
            int4_proof: how that is proven, "skip", "again" or "here", as in GEMMA3_INT4_PROOF (`int4_record.py`).
            **kwargs: as for transformers. `dtype` is bfloat16, float32 or "auto"; `device_map` any that leaves no
                int4 module offloaded; `attn_implementation` this project's own unless given, as "sdpa" or "eager".

        Raises:
            Int4LoadError: whatever is wrong, in one message.
        """
        try:
            with asking_for(int4_backend):
                model, info = cls._from_pretrained(
                    pretrained_model_name_or_path, model_args, config, int4_embedding, int4_proof, kwargs
                )
        except (OSError, ValueError, TypeError, RuntimeError, MemoryError, SafetensorError) as error:
            raise Int4LoadError(f"{pretrained_model_name_or_path}: {error}") from error
        model._int4_backend_asked = int4_backend
        return model if info is None else (model, info)

    @classmethod
    def _from_pretrained(cls, path, model_args, config, int4_embedding, int4_proof, kwargs):
        """The model, and the loading info where that is asked for."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None) or "auto"
        with_loading_info = kwargs.pop("output_loading_info", False)
        _refuse_arguments(path, kwargs)
        if config is None:
            config, kwargs = cls.config_class.from_pretrained(path, return_unused_kwargs=True, **kwargs)
        config = copy.deepcopy(config)
        if config._attn_implementation is None:
            kwargs.setdefault("attn_implementation", IMPLEMENTATION)
        quantization = _take_quantization_config(path, config)
        _refuse_float16(path, dtype if dtype != "auto" else getattr(config, "dtype", None))

        files = _shards(path, hub)
        stored = _stored_tensors(files)
        packed_embedding = any(name.endswith("embed_tokens.qweight") for name in stored)
        if packed_embedding and int4_embedding is False:
            raise Int4LoadError(
                f"{path}: int4_embedding=False needs a plain embedding, and this repo stores it as int4 only. Convert "
                "again with --embedding plain, or drop the argument."
            )
        side_file = None
        if not packed_embedding and int4_embedding is not False:
            side_file = cached_file(path, SIDE_FILE, _raise_exceptions_for_missing_entries=False, **hub)
            if side_file is None and int4_embedding:
                raise Int4LoadError(f"{path}: int4_embedding=True needs {SIDE_FILE}, which this repo lacks.")
        device = _one_device(kwargs.get("device_map"), kwargs.get("max_memory"))
        expected = _one_dtype(dtype if dtype != "auto" else getattr(config, "dtype", None))
        _check_memory(path, stored, side_file, expected, device)
        with repacking(files, stored, device, expected) as begun:
            config._int4_checkpoint = Int4Checkpoint(
                keep=tuple(quantization["modules_to_not_convert"]),
                packed_embedding=packed_embedding,
                scale_dtypes={cls._in_model(name): t.dtype for name, t in stored.items() if name.endswith(".scales")},
                ahead={cls._in_model(name): tensors for name, tensors in begun.stored.items()},
            )
            model, info = super().from_pretrained(
                path,
                *model_args,
                config=config,
                dtype=dtype,
                key_mapping=KEY_MAPPING,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are reported here, with all the rest
                **kwargs,
            )
            _check_loaded(path, model, info)
            _refuse_float16(path, model.dtype)
            model._int4_source = files, side_file, int4_proof
            model._settle_backends({parameter.device for parameter in model.parameters()}, model.dtype)
            repacked = {cls._in_model(name): packed for name, packed in begun.finish(model).items()}
            if side_file is not None:  # before the layers that nobody repacks yet, so that they never meet in memory
                model._recover_int4_embedding(side_file, stored)
        del begun, config  # and with them the mapped files
        for module in model.modules():
            _leave_file(module, MAPPED if repacked else None)
        prepare_linears(model, model.dtype, repacked)
        if packed_embedding:
            model._set_int4_embedding(model.get_input_embeddings().prepare(model.dtype))
        use_fused_modules(model)
        model.config.quantization_config = quantization
        logger.info(f"{path}: int4 backend {model.int4_backend}, {model.int4_bytes / 1e6:.1f} MB of codes and scales")
        return model, info if with_loading_info else None

    def _settle_backends(self, devices: set[torch.device], dtype: torch.dtype) -> None:
        """Proves, where these devices are accelerators, what multiplies on them."""
        if self._int4_source is not None:
            settle_backends(devices, dtype, *self._int4_source)

    def _build_int4_modules(self, checkpoint: Int4Checkpoint) -> None:
        """Replace the linear layers that are quantized on disk, and the embedding where it is stored as int4."""
        held = []
        for name, module in list(self.named_modules()):
            if not isinstance(module, nn.Linear) or any(part in name for part in checkpoint.keep):
                continue
            scale_dtype = checkpoint.scale_dtypes.get(f"{name}.scales", torch.float32)
            dtype, device = module.weight.dtype, module.weight.device
            linear = AwqLinear(module.in_features, module.out_features, scale_dtype, dtype, device)
            if linear.hold(checkpoint.ahead.get(name, {})):
                held.append(re.escape(name))
            self.set_submodule(name, linear)
        if held:  # of these a loader finds tensors for which it knows no place
            tensors = rf"^({re.escape(self._prefix)})?({'|'.join(held)})\.(qweight|qzeros|scales)$"
            self._keys_to_ignore_on_load_unexpected = {*(self._keys_to_ignore_on_load_unexpected or ()), tensors}
        if checkpoint.packed_embedding:
            plain = self.get_input_embeddings().weight
            scale_dtype = checkpoint.scale_dtypes[f"{self._embedding_name}.scales"]
            self._set_int4_embedding(PackedEmbedding(*plain.shape, self._embed_scale, scale_dtype, plain.device))

    def _recover_int4_embedding(self, side_file: str, stored: dict[str, torch.Tensor]) -> None:
        """Swap the plain embedding for its int4 codes, with the scales of the side file."""
        plain = self.get_input_embeddings().weight.detach()
        dtype, device = plain.dtype, plain.device
        name = next(name for name in stored if name.endswith("embed_tokens.weight"))
        in_file = (device.type, dtype) == ("cpu", stored[name].dtype)
        if in_file:
            plain = _read(self._int4_source[0], name)  # mapped by itself: a tower may keep the other mapping
        with safe_open(side_file, framework="pt") as file:
            (only,) = file.keys()
            scales = file.get_tensor(only).to(device)
        expected = (plain.shape[0], plain.shape[1] // GROUP_SIZE)
        if scales.shape != expected:
            raise Int4LoadError(f"{side_file}: scales of shape {tuple(scales.shape)}, expected {expected}.")
        backend = choose_backend(device, dtype, *plain.shape)
        codes = packed = None
        try:
            if backend is NativeCpu:
                packed = recover(plain, scales, stored[name].dtype, in_file)
            else:
                codes = recover_codes(plain, scales, stored[name].dtype)
        except ValueError as error:
            raise Int4LoadError(
                f"{side_file} does not belong to {name}: {error}. Load with int4_embedding=False, or convert again."
            ) from error
        rows, columns = plain.shape
        del plain
        placeholder = PackedEmbedding(rows, columns, self._embed_scale, scales.dtype, "meta")
        self._set_int4_embedding(placeholder)  # from here on the plain one takes no memory
        packed = packed or backend.pack(codes.to(device), scales)
        self._set_int4_embedding(
            Int4Embedding(rows, columns, dtype, backend, packed, self._embed_scale, plain_dtype=stored[name].dtype)
        )

    def _set_int4_embedding(self, embedding: Int4Embedding | PackedEmbedding) -> None:
        exchange(self, self._embedding_name, embedding)
        if hasattr(self, "lm_head"):
            self.lm_head = Int4LMHead(embedding)
        self._tied_weights_keys = {}
        self.all_tied_weights_keys = {}

    @classmethod
    def _in_model(cls, name: str) -> str:
        """Name of a tensor on disk -> its name in this model."""
        return _in_model(name).removeprefix(cls._prefix)

    @classmethod
    def _on_disk(cls, name: str) -> str:
        """Name of a tensor in this model -> its name on disk."""
        return _on_disk(cls._prefix + name)

    @property
    def _embedding_name(self) -> str:
        return next(name for name, module in self.named_modules() if name.endswith("embed_tokens"))

    @property
    def _embed_scale(self) -> float:
        return self.config.get_text_config().hidden_size ** 0.5

    @property
    def int4_backend(self) -> str:
        """Which code multiplies by the int4 matrices, as "aten-cpu" or "aten-cpu (180), reference (2)"."""
        names = [module.backend.name for module in _int4_modules(self)]
        counts = {name: names.count(name) for name in sorted(set(names))}
        return ", ".join(counts) if len(counts) < 2 else ", ".join(f"{name} ({n})" for name, n in counts.items())

    @property
    def int4_report(self) -> str:
        """What was proven of the backends on the devices that the int4 matrices are on, in Markdown."""
        return report({module.device for module in _int4_modules(self)}, self.dtype)

    @property
    def int4_bytes(self) -> int:
        """Bytes of int4 codes and scales in memory."""
        return sum(module.int4_bytes() for module in _int4_modules(self))

    @property
    def dtype(self) -> torch.dtype:
        """Of the final norm: the first parameter, which stock models ask, may be an adapter's."""
        return self.get_decoder().norm.weight.dtype

    def _apply(self, fn, *args, **kwargs):
        """`.to` and the like: the int4 modules repack themselves, and another device has other fused classes.

        Buffers that no file holds (rotary frequencies) stay float32, as they are after loading in any dtype.
        """
        landed = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if landed.dtype == torch.float16:  # before anything is cast
            raise TypeError("Gemma 3 overflows float16: use bfloat16 or float32.")
        computed = [
            (module, name, module._buffers[name])
            for module in self.modules()
            for name in module._non_persistent_buffers_set
        ]
        with asking_for(self._int4_backend_asked):
            if (landed.device, landed.dtype) != (self.device, self.dtype):
                self._settle_backends({landed.device}, landed.dtype)
            super()._apply(fn, *args, **kwargs)
        for module, name, before in computed:
            if module._buffers[name].dtype != before.dtype:
                module._buffers[name] = before.to(module._buffers[name].device)
        use_fused_modules(self)
        return self

    def train(self, mode: bool = True):
        if mode:
            announce_training(self)
        return super().train(mode)

    def get_submodule(self, target: str) -> nn.Module:
        """PEFT's prompt methods ask for the word embedding by this name, or look for a parameter of its shape."""
        return super().get_submodule(self._embedding_name if target == "embeddings.word_embeddings" else target)

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, **kwargs):
        """As for transformers; an int4 embedding keeps its rows where fewer are asked for, and gets no more.

        Raises:
            TypeError: an int4 embedding would have to grow.
        """
        embedding = self.get_input_embeddings()
        if not isinstance(embedding, Int4Embedding):
            return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, **kwargs)
        multiple = pad_to_multiple_of or 1
        wanted = -(-(new_num_tokens or embedding.rows) // multiple) * multiple
        if wanted > embedding.rows:
            raise TypeError(
                f"The int4 embedding has {embedding.rows} rows and cannot grow to {wanted}: load with "
                "int4_embedding=False to get a plain one."
            )
        if wanted < embedding.rows:
            logger.warning_once(f"The int4 embedding keeps its {embedding.rows} rows; {wanted} were asked for.")
        return embedding

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False):
        """As for torch; takes the names of the files that `save_pretrained` writes as well as the model's own."""
        return super().load_state_dict({self._in_model(name): t for name, t in state_dict.items()}, strict, assign)

    def save_pretrained(
        self, save_directory, is_main_process=True, state_dict=None, *, variant=None, safe_serialization=True, **kwargs
    ):
        """Save in the layout that was loaded: AWQ words, old key names, the embedding's side file.

        The files take the place of an earlier save's once all of them are written. A model with PEFT adapters saves
        these alone, as stock models do.

        Args:
            save_directory: a folder, made where there is none.
            is_main_process: False: nothing is written.
            state_dict: the model's own, as `state_dict()` or accelerate's `get_state_dict` give it.
            variant, safe_serialization: refused: names, layout and format are this class's own affair, and what these
                ask for could not be loaded again.
            **kwargs: as for transformers. With `push_to_hub=True` the upload comes before the folder changes.

        Raises:
            TypeError: an argument is refused, or adapters are in the model in a way that only PEFT can save.
            FileExistsError: `save_directory` is a file, or holds an adapter, which would be loaded on top.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file: save_pretrained takes a folder.")
        if getattr(self, "_hf_peft_config_loaded", False):
            return super().save_pretrained(folder, is_main_process, state_dict=state_dict, **kwargs)
        refused = {"variant": variant, "safe_serialization=False": not safe_serialization}
        for name, given in refused.items():
            if given:
                raise TypeError(
                    f"save_pretrained of an int4 model takes no {name}: it saves the tensors that from_pretrained "
                    "reads, as safetensors."
                )
        if not is_main_process:
            return None
        self.config.auto_map = dict(self._auto_classes)
        on_disk = self._tensors_on_disk(state_dict)
        embedding = self.get_input_embeddings()
        with replacing(folder) as new:
            if isinstance(embedding, Int4Embedding) and embedding.plain_dtype is not None:
                scales = {self._on_disk(f"{self._embedding_name}.scales"): embedding.codes_and_scales()[1].cpu()}
                save_file(scales, new / SIDE_FILE, metadata={"format": "pt"})
            kwargs["save_original_format"] = False  # the names are the old ones already
            kwargs.setdefault("repo_id", folder.resolve().name)
            super().save_pretrained(new, state_dict=on_disk, **kwargs)
        return None

    def _tensors_on_disk(self, state_dict: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """The model's tensors, or those given in their place, under their names on disk."""
        own, tensors = self.state_dict(), {}
        if state_dict is not None and state_dict.keys() != own.keys():
            name = min(state_dict.keys() ^ own.keys())
            raise TypeError(f"save_pretrained: this is not the model's own state_dict ({name} is in one of them only).")
        for name, tensor in (state_dict or own).items():
            if PEFT_TENSOR.search(name):
                raise TypeError(
                    f"{name}: PEFT's adapters are in this model. save_pretrained of the PeftModel saves them alone; "
                    "its unload() takes them out, and gives the model that can be saved here."
                )
            if tensor.shape != own[name].shape:
                raise TypeError(f"save_pretrained: {name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}.")
            if name != "lm_head.weight":
                name = name.replace(".base_layer.", ".")  # a level that a deleted adapter leaves
                tensors[self._on_disk(name)] = tensor
        return tensors

    def _prepare_static_cache(self, *args, **kwargs):
        """As transformers' own, with rings for windows where masks are tensors and no chunk of a prompt is compiled."""
        cache = super()._prepare_static_cache(*args, **kwargs)
        attention = self.config.get_text_config()._attn_implementation
        if attention in (IMPLEMENTATION, "sdpa", "eager") and kwargs.get("prefill_chunk_size") is None:
            use_rings(cache, self._previous_max_cache_length)
        return cache

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, **kwargs):
        """As transformers' own for adapters; a model takes the place of an earlier one."""
        if (Path(working_dir) / ADAPTER_CONFIG).exists():
            return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)
        if kwargs.get("commit_message") is None:
            kwargs["commit_message"] = "Upload model"
        return push(Path(working_dir), repo_id, **kwargs)


# GenerationMixin a second time, because transformers makes a copy of a remote class that does not name it, and a copy
# cannot be pickled.
class Gemma3ForConditionalGeneration(_Int4Gemma3, StockForConditionalGeneration, GenerationMixin):
    """Gemma 3 with pictures, on int4 weights. Named as the stock class, because `save_pretrained` writes the name."""

    _auto_classes = PICTURES

    @functools.wraps(StockForConditionalGeneration.forward)
    def forward(self, *args, **kwargs):
        types, cache = kwargs.get("token_type_ids"), cache_among(kwargs)
        given = [*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        new = next((tokens for tokens in given if tokens is not None), None)
        if not (types is None or cache is None or new is None or torch.compiler.is_compiling()):
            kwargs["token_type_ids"] = _of_all_tokens(types, new.shape[1], cache)
        return super().forward(*args, **kwargs)

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, *args, token_type_ids=None, **kwargs):
        """As transformers' own, which with a static cache loses the pictures of a later turn."""
        if token_type_ids is not None:
            token_type_ids = _of_all_tokens(token_type_ids, inputs_embeds.shape[1], cache_among(kwargs))
        return StockForConditionalGeneration.create_masks_for_generate(
            config, inputs_embeds, *args, token_type_ids=token_type_ids, **kwargs
        )

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        """As transformers' own, which would cut a prompt into chunks through its pictures."""
        pictures = any(model_kwargs.get(name) is not None for name in ("pixel_values", "mm_encoder_outputs"))
        if pictures and generation_config.prefill_chunk_size is not None:
            generation_config = copy.copy(generation_config)
            generation_config.prefill_chunk_size = None
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)


class Gemma3ForCausalLM(_Int4Gemma3, StockForCausalLM, GenerationMixin):
    """Gemma 3, text only, on int4 weights. Named as the stock class, because `save_pretrained` writes the name."""

    _auto_classes = TEXT


class Gemma3Model(_Int4Gemma3, StockModel):
    """Gemma 3 with pictures, on int4 weights, without an output head: features."""

    _auto_classes = PICTURES
    _prefix = "model."
    _keys_to_ignore_on_load_unexpected = (r"lm_head\.",)


class Gemma3TextModel(_Int4Gemma3, ChunkedTextModel):
    """Gemma 3, text only, on int4 weights, without an output head: features."""

    _auto_classes = TEXT
    _prefix = "model."
    _keys_to_ignore_on_load_unexpected = (r"lm_head\.",)


def _of_all_tokens(token_type_ids: torch.Tensor, new: int, cache) -> torch.Tensor:
    """Token types [B, S] by position, as masks are made from them, where those of the `new` tokens alone were given.

    Tokens in the cache count as text: nothing that is new is of a picture in there.
    """
    known = 0 if cache is None else int(cache.get_seq_length())
    if not known or token_type_ids.shape[1] != new:
        return token_type_ids
    return nn.functional.pad(token_type_ids, (known, 0))


def _int4_modules(model: nn.Module) -> Iterator[Int4Linear | Int4Embedding]:
    return (module for module in model.modules() if isinstance(module, Int4Linear | Int4Embedding))


def _in_model(name: str) -> str:
    """Name of a tensor on disk -> its name in the model."""
    for pattern, replacement in KEY_MAPPING.items():
        if name.startswith(pattern[1:] + "."):
            name = replacement + name[len(pattern) - 1 :]
            break
    return name.replace("vision_tower.vision_model.", "vision_tower.", 1)  # transformers 5 dropped this level


def _on_disk(name: str) -> str:
    """Name of a tensor in the model -> its name on disk, in the old layout that every engine reads."""
    for pattern, replacement in KEY_MAPPING.items():
        if name.startswith(replacement + "."):
            name = pattern[1:] + name[len(replacement) :]
            break
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)  # transformers 5 dropped this level
    return name


def _refuse_arguments(path, kwargs: dict) -> None:
    quantization = kwargs.pop("quantization_config", None)
    if quantization is not None and _unsupported(quantization):  # lm-eval gives the one of config.json
        raise Int4LoadError(f"{path}: no other quantization_config can be given: these weights are int4 already.")
    for name in ("state_dict", "gguf_file", "variant", "tp_plan", "key_mapping"):
        if kwargs.pop(name, None) is not None:
            raise Int4LoadError(f"{path}: {name} is not supported for int4 weights.")
    kwargs.pop("ignore_mismatched_sizes", None)
    device_map = kwargs.get("device_map")
    if isinstance(device_map, dict) and _is_offloaded(device_map):
        raise Int4LoadError(_OFFLOAD.format(path=path))


def _refuse_float16(path, dtype) -> None:
    values = dtype.values() if isinstance(dtype, dict) else [dtype]
    if any(str(value).removeprefix("torch.") in ("float16", "half") for value in values):
        raise Int4LoadError(
            f"{path}: dtype=float16 is refused: Gemma 3's activations overflow float16 (at most 65,504). "
            "Use dtype=torch.bfloat16, or torch.float32."
        )


_OFFLOAD = (
    "{path}: this device_map offloads part of the model to the CPU or to disk, which the int4 modules do not support. "
    "Give a device_map that fits (one GPU, several GPUs, or the CPU alone)."
)


def _is_offloaded(device_map: dict) -> bool:
    devices = {str(device) for device in device_map.values()}
    return "disk" in devices or ("cpu" in devices and len(devices) > 1)


def _unsupported(quantization) -> dict:
    """What a quantization_config, as a dict or as transformers' object, says other than `SUPPORTED`."""
    values = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return {key: values.get(key) for key, value in SUPPORTED.items() if values.get(key) != value}


def _take_quantization_config(path, config) -> dict:
    """Remove `quantization_config` from the config, checked, and give it back as a dict."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        raise Int4LoadError(
            f"{path}: no quantization_config. Either config.json has none, and this is no int4 repo of ours; or it was "
            "given as None: leave that out, these weights are int4 in any case."
        )
    if wrong := _unsupported(quantization):
        raise Int4LoadError(f"{path}: quantization_config has {wrong}; this code runs {SUPPORTED} only.")
    quantization = quantization if isinstance(quantization, dict) else quantization.to_dict()
    del config.quantization_config
    return quantization | {"modules_to_not_convert": quantization.get("modules_to_not_convert") or []}


def weight_files(path) -> tuple[list[str], str | None]:
    """The files of a repo that hold weights, and the one with the scales of a plain embedding, where it has that."""
    return _shards(path, {}), cached_file(path, SIDE_FILE, _raise_exceptions_for_missing_entries=False)


def _shards(path, hub: dict) -> list[str]:
    single = cached_file(path, "model.safetensors", _raise_exceptions_for_missing_entries=False, **hub)
    index = None if single else cached_file(path, INDEX, _raise_exceptions_for_missing_entries=False, **hub)
    if single is None and index is None:
        raise Int4LoadError(f"{path} holds no weights: neither model.safetensors nor {INDEX}.")
    return [single] if single else get_checkpoint_shard_files(path, index, **hub)[0]


def _stored_tensors(files: list[str]) -> dict[str, torch.Tensor]:
    """Every tensor on disk as a meta tensor, from the headers alone."""
    stored = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (a safe_open has no __iter__)
                    header = shard.get_slice(name)
                    dtype = DTYPES.get(header.get_dtype())
                    if dtype is not None:
                        stored[name] = torch.empty(header.get_shape(), dtype=dtype, device="meta")
        except SafetensorError as error:
            raise Int4LoadError(f"{file} is damaged or incomplete ({error}): download it again.") from error
    return stored


def _read(files: list[str], name: str) -> torch.Tensor:
    """A tensor of a checkpoint, in a mapping that ends with it."""
    for file in files:
        with safe_open(file, framework="pt") as shard:
            if name in shard.keys():  # noqa: SIM118 (a safe_open has no __contains__)
                return shard.get_tensor(name)
    raise KeyError(name)


def _one_device(device_map, max_memory) -> torch.device | None:
    """The device that all of a model goes to; None where accelerate is to find out."""
    if isinstance(device_map, dict) and len(set(device_map.values())) == 1:
        (device_map,) = set(device_map.values())
    if isinstance(device_map, dict):
        return None
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return None if torch.accelerator.is_available() or max_memory else torch.device("cpu")
    return torch.device(torch.get_default_device() if device_map is None else device_map)


def _one_dtype(dtype) -> torch.dtype:
    """What a model is loaded in, going by what is asked for or by config.json; bfloat16 where that is not one dtype."""
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16


def _check_memory(
    path, stored: dict[str, torch.Tensor], side_file: str | None, dtype: torch.dtype, device: torch.device | None
) -> None:
    """Says before the work that a model does not fit on the one device that it goes to."""
    if device is None:
        return  # accelerate asks what fits where
    scales = os.path.getsize(side_file) if side_file else 0

    def needed(dtype: torch.dtype, scales: int) -> tuple[int, int]:
        return bytes_needed(stored, dtype, scales, on_cpu=device.type == "cpu")

    advice = {"dtype=torch.bfloat16": needed(torch.bfloat16, scales)[0]} if dtype == torch.float32 else {}
    plain = [tensor for name, tensor in stored.items() if name.endswith("embed_tokens.weight")]
    if plain and not scales:
        advice["an int4 embedding (int4_embedding=True, bfloat16)"] = needed(torch.bfloat16, plain[0].numel() // 16)[0]
    check_memory(path, needed(dtype, scales), device, advice)


def _leave_file(module: nn.Module, fewer: int | None) -> None:
    """Copy the parameters of a module out of the mapped file, the pages of which can go when the last one has left.

    Args:
        fewer: only those of fewer bytes; None: all of them.
    """
    for _, parameter in module.named_parameters(recurse=False):
        if parameter.device.type == "cpu" and (fewer is None or parameter.nbytes < fewer):
            parameter.data = parameter.data.clone()


def _check_loaded(path, model, info: dict) -> None:
    """No tensor missing, unexpected or mis-shaped, and nothing offloaded."""
    problems = [f"missing: {name}" for name in sorted(map(model._on_disk, info["missing_keys"]))]
    problems += [f"unexpected: {name}" for name in sorted(info["unexpected_keys"])]
    problems += [
        f"mis-shaped: {model._on_disk(name)} is {tuple(found)}, expected {tuple(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    problems += [str(message) for message in info.get("error_msgs") or []]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise Int4LoadError(f"{path}: the tensors on disk are not those that config.json asks for. {shown}")
    if _is_offloaded(getattr(model, "hf_device_map", None) or {}):
        raise Int4LoadError(_OFFLOAD.format(path=path))


Gemma3ForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
Gemma3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
Gemma3Model.register_for_auto_class("AutoModel")
Gemma3TextModel.register_for_auto_class("AutoModel")
