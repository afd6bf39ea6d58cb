"""Device memory. Nothing here runs where there is none; NIXL needs a UCX that knows the device."""

from __future__ import annotations

import pytest
from dynamo_nixl import Descriptor, DeviceKind, OperationStatus, RdmaMetadata, _cuda

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda():
    """torch, on a machine with a CUDA device."""
    if not _cuda.is_available():
        pytest.skip("no CUDA device")
    return pytest.importorskip("torch", reason="no torch")


@pytest.fixture
def xpu():
    """torch, on a machine with an XPU."""
    torch = pytest.importorskip("torch", reason="no torch")
    if not torch.xpu.is_available():
        pytest.skip("no XPU device")
    return torch


def test_cuda_tensors_are_described(cuda):
    tensor = cuda.arange(100, device="cuda:0")
    descriptor = Descriptor(tensor)
    assert (descriptor.ptr, descriptor.size) == (tensor.data_ptr(), 800)
    assert (descriptor.device.kind, descriptor.device.id) == (DeviceKind.CUDA, 0)
    assert descriptor.metadata.device == "cuda:0"


def test_cuda_arrays_of_any_library_are_described(cuda):
    class Array:
        def __init__(self, tensor):
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__

    class Exporter:
        def __dlpack__(self, **options):
            return tensor.__dlpack__(**options)

    tensor = cuda.arange(100, device="cuda:0")
    for each in (Array(tensor), Exporter()):
        descriptor = Descriptor(each)
        assert (descriptor.ptr, descriptor.size, str(descriptor.device)) == (tensor.data_ptr(), 800, "cuda:0")


def test_cupy_arrays_are_described(cuda):
    cupy = pytest.importorskip("cupy", reason="no CuPy")
    array = cupy.arange(100)
    descriptor = Descriptor(array)
    assert (descriptor.ptr, descriptor.size, str(descriptor.device)) == (array.data.ptr, array.nbytes, "cuda:0")
    assert str(Descriptor((array, "cuda:0")).device) == "cuda:0"


def test_xpu_tensors_are_described(xpu):
    tensor = xpu.arange(100, device="xpu:0")
    descriptor = Descriptor(tensor)
    assert (descriptor.ptr, descriptor.size, str(descriptor.device)) == (tensor.data_ptr(), 800, "xpu:0")


@pytest.mark.parametrize(("source", "target"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_tensors_are_read(spawn, cuda, source, target):
    owner, reader = spawn(), spawn()
    metadata = owner.call(expose, source)
    assert reader.call(read, metadata, target)
    assert owner.call(wait)


def test_xpu_tensors_are_read(spawn, xpu):
    owner, reader = spawn(), spawn()
    metadata = owner.call(expose, "xpu")
    assert reader.call(read, metadata, "xpu")
    assert owner.call(wait)


async def expose(here, device):
    import torch

    here.tensor = torch.arange(300_000, device=device)
    here.operation = await here.connector.create_readable(Descriptor(here.tensor))
    return here.operation.metadata().model_dump()


async def wait(here):
    await here.operation.wait_for_completion()
    return here.operation.status is OperationStatus.COMPLETE


async def read(here, metadata, device):
    import torch

    target = torch.zeros(300_000, dtype=torch.int64, device=device)
    remote = RdmaMetadata.model_validate(metadata)
    with await here.connector.begin_read(remote, Descriptor(target)) as operation:
        await operation.wait_for_completion()
    return bool((target.cpu() == torch.arange(300_000)).all())
