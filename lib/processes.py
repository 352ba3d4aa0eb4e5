"""Several processes that train one model together: its weights sharded among them (FSDP2), each batch dealt out.

Owns what differs when there are several: who is launched how, sharding, dealing rows and joining what was computed on
them, local parts of sharded tensors, and writing the whole model as one checkpoint. It knows no loss and no stage. A
process that was not launched is alone, and everything here leaves it as it is.

How many processes there are, and on which machines, is said by `accelerate launch --config_file
data/accelerate/fsdp2.yaml`, whose comments explain every line.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from lib import storage
from lib.errors import InputError

_PATIENCE = 30.0  # seconds by which processes started together may be apart


# who is there ---------------------------------------------------------------------------------------------------------
def launched() -> bool:
    """Whether this process was started by a launcher (accelerate or torchrun), alone or beside others."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return int(os.environ.get("RANK", 0)) == 0


def let_the_first_speak() -> None:
    """To be called before an error is told: what all processes meet, the first one tells.

    The launcher ends all others once one has failed. Who is still there after a while has met something of its own.
    """
    if not is_first():
        time.sleep(_PATIENCE)


def accelerator() -> Accelerator:
    """What a training loop runs on: where the model already is, or, in launched processes, where the launcher says.

    Raises `InputError` in processes that were launched without FSDP2.
    """
    if not launched():
        # It names the CPU but moves nothing: a model on a GPU is trained there. Always alike, because accelerate
        # keeps the first answer for the whole process and refuses another.
        return Accelerator(cpu=True, device_placement=False)
    made = Accelerator(cpu=not torch.accelerator.is_available())
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _use_fsdp(made)
    if not made.is_fsdp2:
        raise InputError(
            f"launched as {made.distributed_type.value}, but only FSDP2 is known here; launch with "
            "--config_file data/accelerate/fsdp2.yaml, or run one process without a launcher"
        )
    return made


def _use_fsdp(made: Accelerator) -> None:
    """Shard on CPUs too, and models of any family one after the other.

    accelerate 1.15 shards on accelerators only: on CPUs it would go on with a whole copy in every process, without a
    word. And it keeps the settings of the first model it met, among them what its blocks are called.
    """
    if made.distributed_type == DistributedType.MULTI_CPU:
        made.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP  # one copies the other
    plugin = FullyShardedDataParallelPlugin()
    if made.mixed_precision != "no":
        plugin.set_mixed_precision(made.mixed_precision)
    made.state.fsdp_plugin = plugin


def shard(accelerator: Accelerator, model: Any, optimizer: Any) -> tuple[Any, Any]:
    """Model and optimizer as the loop uses them: sharded in place in launched processes, else as they are."""
    if sharded(model):  # by an earlier run; the optimizer was made of its shards
        return model, optimizer
    return accelerator.prepare(model, optimizer)


def sharded(model: Any) -> bool:
    """Whether the weights of a model are spread over processes, so that all of them must run it together."""
    return isinstance(model, FSDPModule)


def device(model: Any) -> torch.device:
    """Where a model computes. Sharded weights can wait elsewhere (offloaded to the CPU)."""
    return PartialState().device if sharded(model) else next(model.parameters()).device


# batches --------------------------------------------------------------------------------------------------------------
def dealt(rows: int) -> Int[Tensor, "own"]:
    """The rows of a batch that this process computes: every n-th of n processes.

    Never none, because all processes must run a sharded model equally often: one without rows gets the first, which
    `joined` leaves out.
    """
    own = torch.arange(rows)[dist.get_rank() :: dist.get_world_size()]
    return own if len(own) else torch.arange(1)


def joined(own: Float[Tensor, "own"], row: Int[Tensor, "value"]) -> Float[Tensor, "value"]:
    """Values of all rows of a batch from those of the rows `dealt` here; `row` says which row each value is of.

    Every process gets the same values, bit for bit, and so computes the same loss. What it differentiates are its own;
    their gradient counts once for every process, because FSDP2 averages gradients over processes, where the gradient
    of a whole batch is a sum over rows.
    """
    processes = dist.get_world_size()
    mine = row % processes == dist.get_rank()
    every = torch.zeros(len(row), dtype=own.dtype, device=own.device)
    if busy := bool(mine.any()):
        every[mine] = own.detach()
    dist.all_reduce(every)  # each value is one process's, and 0 elsewhere
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * processes)
    return every.masked_scatter(mine, own) if busy else every + 0 * own.sum()  # the backward pass must reach the model


# weights --------------------------------------------------------------------------------------------------------------
def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that is here, sharing its memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_part(mask: Bool[Tensor, "..."], parameter: Tensor) -> Bool[Tensor, "..."]:
    """The part of a whole mask that belongs to the weights of `parameter` that are here.

    Of several processes the first one's mask counts: others may have none, where only the first read the checkpoint.
    """
    if not isinstance(parameter, DTensor):
        return mask.to(parameter.device)
    whole = torch.empty(mask.shape, dtype=torch.uint8) if mask.is_meta else mask.to(torch.uint8)
    mesh = parameter.device_mesh
    return distribute_tensor(whole.to(mesh.device_type), mesh, parameter.placements).to_local().bool()


def save(accelerator: Accelerator, model: Any, tokenizer: Any, folder: Path, about: dict[str, Any]) -> None:
    """Write a model as a Hugging Face folder (safetensors), sharded or not; it appears whole or not at all.

    All processes must call this; the first gathers the weights and writes. `about` is kept in the folder's seal.
    """
    weights = accelerator.get_state_dict(model)
    if is_first():
        for other, source in getattr(model, "all_tied_weights_keys", {}).items():
            weights[other] = weights[source]  # gathered twice: as one tensor again it is stored once

        def write(temporary: Path) -> None:
            model.save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)

        storage.seal_folder(folder, write, about)
    accelerator.wait_for_everyone()


def leave() -> None:
    """Say goodbye to the other processes, when all work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()
