"""Memory described through DLPack and `__cuda_array_interface__`, and many tensors at once. No NIXL."""

import ctypes
import gc
import subprocess
import sys
import weakref
from collections import OrderedDict

import numpy as np
import pytest
from dynamo_nixl import Descriptor, DeviceKind


class Exporter:
    """An array of a library that nobody here knows: all it has is DLPack, as NumPy makes it."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class OldExporter(Exporter):
    """From before versions were negotiated."""

    def __dlpack__(self, *, stream=None):
        return self.values.__dlpack__()


class CudaArray:
    """An array of a library that nobody here knows: all it has is the CUDA array interface."""

    def __init__(self, **interface):
        self.__cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", "data": (0x7000, False), "version": 3}
        self.__cuda_array_interface__.update(interface)


class TestDlpack:
    @pytest.mark.parametrize("exporter", [Exporter, OldExporter])
    def test_memory(self, exporter):
        values = np.arange(24, dtype=np.int16).reshape(4, 6)
        exported = exporter(values)
        descriptor = Descriptor(exported)
        assert (descriptor.ptr, descriptor.size) == (values.ctypes.data, 48)
        assert descriptor.device.kind is DeviceKind.HOST
        assert descriptor._data_ref is exported
        descriptor._local_range(is_destination=True)

    @pytest.mark.parametrize("exporter", [Exporter, OldExporter])
    def test_it_is_kept_alive_and_let_go(self, exporter):
        values = np.arange(1000)
        alive = weakref.ref(values)
        exported = exporter(values)
        *_, owner = Descriptor(exported)._local_range(is_destination=False)
        del values, exported
        gc.collect()
        assert alive() is not None
        del owner
        gc.collect()
        assert alive() is None

    def test_part_of_a_bigger_one(self):
        values = np.arange(100, dtype=np.int32)
        descriptor = Descriptor(Exporter(values[10:20]))
        assert ctypes.string_at(descriptor.ptr, descriptor.size) == values[10:20].tobytes()

    @pytest.mark.parametrize("shape", [(), (0, 5), (1,), (3, 1, 2)])
    def test_shapes(self, shape):
        values = np.zeros(shape, np.float64)
        assert Descriptor(Exporter(values)).size == values.nbytes

    def test_what_is_not_contiguous_is_refused(self):
        with pytest.raises(ValueError, match="contiguous"):
            Descriptor(Exporter(np.zeros((4, 4))[:, 1]))

    def test_what_is_read_only_cannot_be_received_into(self):
        values = np.arange(8)
        values.flags.writeable = False
        descriptor = Descriptor(Exporter(values))
        descriptor._local_range(is_destination=False)
        with pytest.raises(ValueError, match="read-only"):
            descriptor._local_range(is_destination=True)

    @pytest.mark.parametrize("exporter", [Exporter, OldExporter])
    def test_an_object_that_refuses(self, exporter):
        # NumPy's answer to a type that DLPack does not know.
        with pytest.raises(ValueError, match="Exporter does not export its memory through DLPack: "):
            Descriptor(exporter(np.zeros(3, "datetime64[s]")))

    def test_a_class_is_no_object(self):
        with pytest.raises(TypeError):
            Descriptor(Exporter)

    def test_needs_no_library(self):
        # As a library would that is neither torch, NumPy nor CuPy: a capsule made by hand.
        program = """
import ctypes, sys
from dynamo_nixl import Descriptor
from dynamo_nixl._dlpack import _Managed
memory, shape = (ctypes.c_char * 12)(*b"hello, world"), (ctypes.c_int64 * 1)(3)
managed = _Managed()
managed.tensor.data = ctypes.addressof(memory)
managed.tensor.device_type, managed.tensor.ndim = 1, 1
managed.tensor.code, managed.tensor.bits, managed.tensor.lanes = 0, 32, 1
managed.tensor.shape = shape
class Exporter:
    def __dlpack__(self, **options):
        new = ctypes.pythonapi.PyCapsule_New
        new.argtypes, new.restype = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p], ctypes.py_object
        return new(ctypes.addressof(managed), b"dltensor", None)
descriptor = Descriptor(Exporter())
assert ctypes.string_at(descriptor.ptr, descriptor.size) == b"hello, world"
assert not {"numpy", "torch", "cupy"} & set(sys.modules)
"""
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")


class TestCudaArrayInterface:
    def test_the_stated_device_is_trusted(self):
        array = CudaArray()
        descriptor = Descriptor((array, "cuda:3"))
        assert (descriptor.ptr, descriptor.size, str(descriptor.device)) == (0x7000, 24, "cuda:3")
        assert descriptor._data_ref is array

    def test_strides_of_a_contiguous_one(self):
        assert Descriptor((CudaArray(strides=(12, 4)), "cuda")).size == 24

    def test_what_is_not_contiguous_is_refused(self):
        with pytest.raises(ValueError, match="contiguous"):
            Descriptor((CudaArray(strides=(4, 8)), "cuda"))

    def test_what_is_read_only_cannot_be_received_into(self):
        descriptor = Descriptor((CudaArray(data=(0x7000, True)), "cuda"))
        with pytest.raises(ValueError, match="read-only"):
            descriptor._local_range(is_destination=True)

    def test_memory_that_no_driver_knows(self):
        # With or without a GPU: nobody allocated that address.
        with pytest.raises(ValueError, match="state its device"):
            Descriptor(CudaArray())

    def test_nothing(self):
        descriptor = Descriptor(CudaArray(shape=(0, 3), data=(0, False)))
        assert descriptor.size == 0
        # The interface prescribes the address 0 for it, which metadata cannot carry.
        assert descriptor.metadata.ptr > 0


class TestFromTensors:
    def test_a_sequence(self):
        tensors = [np.zeros(3), b"bytes", (0x1000, 16, "cuda:1"), bytearray(7)]
        described = Descriptor.from_tensors(tensors)
        assert [each.size for each in described] == [24, 5, 16, 7]
        assert all(each._data_ref is tensor for each, tensor in zip(described[:2], tensors, strict=False))
        assert [each.size for each in Descriptor.from_tensors(tuple(tensors))] == [24, 5, 16, 7]

    def test_a_mapping(self):
        state = OrderedDict(weight=np.zeros((2, 2)), bias=np.zeros(2))
        described = Descriptor.from_tensors(state)
        assert all(each._data_ref is tensor for each, tensor in zip(described, state.values(), strict=True))
        assert [each.size for each in described] == [32, 16]

    def test_none_at_all(self):
        assert Descriptor.from_tensors([]) == []

    @pytest.mark.parametrize("tensors", [np.zeros(3), b"abc", "abc", bytearray(3), 5, None, iter([b"x"])])
    def test_what_is_neither(self, tensors):
        with pytest.raises(TypeError, match="a sequence or a mapping"):
            Descriptor.from_tensors(tensors)

    def test_errors_name_the_culprit(self):
        with pytest.raises(TypeError, match="tensor 1: "):
            Descriptor.from_tensors([b"x", object()])
        with pytest.raises(ValueError, match="tensor 'bias': "):
            Descriptor.from_tensors({"weight": b"x", "bias": None})
