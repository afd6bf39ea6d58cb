"""What can be described as memory, and which role it may play. No NIXL."""

import array
import ctypes
import gc
import mmap
import sys
import types
import weakref

import numpy as np
import pytest
from dynamo_nixl import Descriptor, Device, DeviceKind, SerializedDescriptor


class TestDescriptorInputs:
    def test_bytes(self):
        data = b"ab\0cd" * 100
        descriptor = Descriptor(data=data)
        assert ctypes.string_at(descriptor.ptr, descriptor.size) == data
        assert str(descriptor.device) == "cpu"

    @pytest.mark.parametrize("data", [b"", bytearray(), np.zeros((0, 3))])
    def test_nothing(self, data):
        assert Descriptor(data).size == 0

    def test_a_bytearray_cannot_be_resized_meanwhile(self):
        data = bytearray(b"x" * 64)
        descriptor = Descriptor(data)
        with pytest.raises(BufferError):
            data.extend(b"y" * 1000)
        assert ctypes.string_at(descriptor.ptr, descriptor.size) == b"x" * 64
        del descriptor
        gc.collect()
        data.extend(b"y")

    def test_buffers(self):
        numbers = array.array("d", [1.0, 2.0])
        assert Descriptor(numbers).ptr == numbers.buffer_info()[0]
        assert Descriptor(memoryview(numbers)).size == 16
        with mmap.mmap(-1, 4096) as mapping:
            descriptor = Descriptor(mapping)
            assert descriptor.size == 4096
            with pytest.raises(BufferError):
                mapping.close()
            del descriptor

    def test_buffers_of_structures(self):
        """The name of a field says nothing of its type."""

        class Named(ctypes.Structure):
            _fields_ = [("O", ctypes.c_int32), ("POO", ctypes.c_int32)]

        class Objects(ctypes.Structure):
            _fields_ = [("i", ctypes.py_object)]

        assert Descriptor(Named(1, 2)).size == 8
        with pytest.raises(TypeError, match="Python objects"):
            Descriptor(Objects())

    def test_numpy(self):
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        descriptor = Descriptor(values)
        assert (descriptor.ptr, descriptor.size) == (values.ctypes.data, 24)
        assert descriptor._data_ref is values

    def test_numpy_with_a_device(self):
        values = np.zeros(8)
        assert str(Descriptor((values, "cuda:1")).device) == "cuda:1"
        assert str(Descriptor((values, Device("cpu"))).device) == "cpu"
        with pytest.raises(ValueError, match="unknown device"):
            Descriptor((values, "disk"))
        with pytest.raises(ValueError, match="non-contiguous"):
            Descriptor((values[::2], "cuda:1"))

    def test_pointers(self):
        owner = bytearray(16)
        assert Descriptor((4096, 16)).device.kind is DeviceKind.HOST
        descriptor = Descriptor((4096, 16, "xpu:2", owner, "ignored"))
        assert (descriptor.ptr, descriptor.size, str(descriptor.device)) == (4096, 16, "xpu:2")
        assert descriptor._data_ref is owner
        assert Descriptor((0, -1)).size == -1

    @pytest.mark.parametrize(
        "data",
        [
            object(),
            "text",
            [1, 2],
            5,
            (),
            (1,),
            (1, 2.0),
            (1, 2, None),
            (1, 2, 3),
            (np.zeros(2), None),
            (np.zeros(2), "cpu", None),
            np.array([object()]),
        ],
    )
    def test_wrong_types(self, data):
        with pytest.raises(TypeError):
            Descriptor(data)

    def test_none(self):
        with pytest.raises(ValueError, match="None"):
            Descriptor(None)

    def test_the_object_is_kept_alive(self):
        values = np.zeros(8)
        alive = weakref.ref(values)
        descriptor = Descriptor(values)
        del values
        gc.collect()
        assert alive() is not None
        del descriptor
        gc.collect()
        assert alive() is None


class TestDescriptor:
    def test_text(self):
        descriptor = Descriptor((0x1000, 16, "cuda:1"))
        assert str(descriptor) == "ptr=0x1000, size=16, device=cuda:1"
        assert repr(descriptor) == "Descriptor(ptr=0x1000, size=16, device=cuda:1)"

    def test_metadata_follows_a_changed_size(self):
        descriptor = Descriptor((0x1000, 16))
        assert descriptor.metadata == SerializedDescriptor(device="cpu", ptr=0x1000, size=16)
        descriptor._data_size = 8
        assert descriptor.metadata.size == descriptor.size == 8

    def test_from_serialized(self):
        descriptor = Descriptor.from_serialized(SerializedDescriptor(device="xpu:1", ptr=1, size=2))
        assert str(descriptor) == "ptr=0x1, size=2, device=xpu:1"
        with pytest.raises(TypeError):
            Descriptor.from_serialized({"ptr": 1})

    def test_is_not_registered_by_itself(self):
        assert Descriptor(b"x").is_registered is False

    def test_local_range(self):
        data = bytearray(16)
        descriptor = Descriptor(data)
        kind, ordinal, ptr, size, owner = descriptor._local_range(is_destination=True)
        assert (kind, ordinal, ptr, size) == (1, 0, descriptor.ptr, 16)
        assert owner.obj is data

    @pytest.mark.parametrize(
        "data",
        [b"x" * 8, memoryview(b"x" * 8), np.frombuffer(b"x" * 8, np.uint8), np.zeros((4, 4))[:, 1], bytearray(8)],
        ids=["bytes", "view", "read-only array", "strided array", "strided view"],
    )
    def test_what_cannot_receive(self, data):
        descriptor = Descriptor(memoryview(data)[::2] if isinstance(data, bytearray) else data)
        descriptor._local_range(is_destination=False)
        with pytest.raises(ValueError, match="cannot receive"):
            descriptor._local_range(is_destination=True)

    def test_non_contiguous_memory_is_copied_to_be_sent(self):
        values = np.arange(16, dtype=np.uint8).reshape(4, 4)
        descriptor = Descriptor(values.T)
        assert ctypes.string_at(descriptor.ptr, descriptor.size) == values.T.tobytes()
        view = memoryview(bytes(range(16)))[::3]
        descriptor = Descriptor(view)
        assert ctypes.string_at(descriptor.ptr, descriptor.size) == view.tobytes()

    @pytest.mark.parametrize("data", [(0, 8), (-8, 8), (8, -1)])
    def test_impossible_ranges(self, data):
        with pytest.raises(ValueError, match=r"address|size"):
            Descriptor(data)._local_range(is_destination=False)

    def test_a_size_beyond_the_memory(self):
        descriptor = Descriptor(bytearray(8))
        descriptor._data_size = 9
        with pytest.raises(ValueError, match="exceeds"):
            descriptor._local_range(is_destination=True)


class Tensor:
    """As much of `torch.Tensor` as a descriptor looks at, over a NumPy array."""

    def __init__(self, values, device="cpu", *, is_conj=False):
        self.values = values
        self.device = types.SimpleNamespace(type=device)
        self.layout = "strided"
        self._is_conj = is_conj

    def get_device(self):
        return 3

    def is_conj(self):
        return self._is_conj

    def is_neg(self):
        return False

    def is_contiguous(self):
        return self.values.flags.c_contiguous

    def detach(self):
        return self

    def resolve_conj(self):
        return Tensor(self.values.conj()) if self._is_conj else self

    def resolve_neg(self):
        return self

    def contiguous(self):
        return self if self.is_contiguous() else Tensor(self.values.copy())

    def data_ptr(self):
        return self.values.ctypes.data

    def numel(self):
        return self.values.size

    def element_size(self):
        return self.values.itemsize

    def untyped_storage(self):
        return self.values


@pytest.fixture
def torch(monkeypatch):
    module = types.ModuleType("torch")
    module.Tensor = Tensor
    module.strided = "strided"
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.mark.usefixtures("torch")
class TestTensors:
    def test_plain(self):
        tensor = Tensor(np.zeros((2, 3), np.float16))
        descriptor = Descriptor(tensor)
        assert (descriptor.ptr, descriptor.size, str(descriptor.device)) == (tensor.data_ptr(), 12, "cpu")
        assert descriptor._data_ref is tensor
        assert descriptor._local_range(is_destination=True)[4] is tensor.values

    @pytest.mark.parametrize(("device", "text"), [("cuda", "cuda:3"), ("xpu", "xpu:3")])
    def test_devices(self, device, text):
        assert str(Descriptor(Tensor(np.zeros(2), device)).device) == text

    @pytest.mark.parametrize("device", ["meta", "mps"])
    def test_devices_that_nixl_does_not_know(self, device):
        with pytest.raises(ValueError, match="device"):
            Descriptor(Tensor(np.zeros(2), device))

    def test_sparse(self):
        tensor = Tensor(np.zeros(2))
        tensor.layout = "sparse_coo"
        with pytest.raises(ValueError, match="dense"):
            Descriptor(tensor)

    @pytest.mark.parametrize(
        "tensor",
        [Tensor(np.arange(12).reshape(3, 4).T), Tensor(np.array([1 + 2j, 3 - 1j]), is_conj=True)],
        ids=["transposed", "lazily conjugated"],
    )
    def test_what_is_copied_to_be_sent(self, tensor):
        descriptor = Descriptor(tensor)
        expected = tensor.values.conj() if tensor.is_conj() else tensor.values
        assert ctypes.string_at(descriptor.ptr, descriptor.size) == expected.tobytes()
        with pytest.raises(ValueError, match="contiguous"):
            descriptor._local_range(is_destination=True)
