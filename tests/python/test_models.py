"""The plain types: enumerations, devices, metadata; and what the package exports. No NIXL."""

import json
import subprocess
import sys

import pytest
from dynamo_nixl import (
    Device,
    DeviceKind,
    OperationKind,
    OperationStatus,
    RdmaMetadata,
    SerializedDescriptor,
)
from pydantic import BaseModel, ValidationError


class TestEnumerations:
    @pytest.mark.parametrize(
        ("member", "value", "text"),
        [
            (DeviceKind.UNSPECIFIED, 0, "<invalid>"),
            (DeviceKind.HOST, 1, "cpu"),
            (DeviceKind.CUDA, 2, "cuda"),
            (DeviceKind.XPU, 3, "xpu"),
            (OperationKind.UNSPECIFIED, 0, "<invalid>"),
            (OperationKind.READ, 1, "READ"),
            (OperationKind.WRITE, 2, "WRITE"),
            (OperationStatus.UNINITIALIZED, 0, "<invalid>"),
            (OperationStatus.INITIALIZED, 1, "INIT"),
            (OperationStatus.IN_PROGRESS, 2, "PROC"),
            (OperationStatus.COMPLETE, 3, "DONE"),
            (OperationStatus.CANCELLED, 4, "STOP"),
            (OperationStatus.ERRORED, 5, "ERR"),
        ],
    )
    def test_number_and_text(self, member, value, text):
        assert member == value
        assert str(member) == text
        assert f"{member}" == text
        assert repr(member) == f"<{type(member).__name__}.{member.name}: {value}>"

    def test_only_the_host_is_dram(self):
        assert {str(kind): kind.nixl_mem_type for kind in DeviceKind} == {
            "<invalid>": "VRAM",
            "cpu": "DRAM",
            "cuda": "VRAM",
            "xpu": "VRAM",
        }


class TestDevice:
    @pytest.mark.parametrize(
        ("name", "kind", "ordinal", "text"),
        [
            ("cpu", DeviceKind.HOST, 0, "cpu"),
            ("host", DeviceKind.HOST, 0, "cpu"),
            ("cpu:5", DeviceKind.HOST, 0, "cpu"),
            ("  CUDA:1 ", DeviceKind.CUDA, 1, "cuda:1"),
            ("cuda", DeviceKind.CUDA, 0, "cuda:0"),
            ("cudaX", DeviceKind.CUDA, 0, "cuda:0"),
            ("cuda:2:7", DeviceKind.CUDA, 2, "cuda:2"),
            ("cuda:-1", DeviceKind.CUDA, -1, "cuda:-1"),
            ("GPUfoo:4", DeviceKind.CUDA, 4, "cuda:4"),
            ("xpu:3", DeviceKind.XPU, 3, "xpu:3"),
            ((DeviceKind.HOST, 7), DeviceKind.HOST, 7, "cpu"),
            ((DeviceKind.XPU, 1), DeviceKind.XPU, 1, "xpu:1"),
        ],
    )
    def test_names(self, name, kind, ordinal, text):
        device = Device(name)
        assert (device.kind, device.id, str(device)) == (kind, ordinal, text)
        assert repr(device) == f"Device(kind={kind}, id={ordinal})"

    @pytest.mark.parametrize("name", [None, "", "disk", "cuda:", "cuda:x"])
    def test_unknown_names(self, name):
        with pytest.raises(ValueError, match=r".+"):
            Device(name)

    @pytest.mark.parametrize(
        "name", [1, ["cpu"], (2, 1), (DeviceKind.CUDA,), (DeviceKind.CUDA, "1"), [DeviceKind.CUDA, 1]]
    )
    def test_wrong_types(self, name):
        with pytest.raises(TypeError):
            Device(name)

    def test_keyword_and_identity(self):
        assert Device(metadata="cpu") != Device(metadata="cpu")


class TestSerializedDescriptor:
    def test_defaults_are_not_checked(self):
        assert SerializedDescriptor().model_dump() == {"device": "cpu", "ptr": 0, "size": 0}

    @pytest.mark.parametrize("device", ["cpu", "cuda:1", "xpu:0", " CUDA:1 ", "cudaX"])
    def test_devices(self, device):
        assert SerializedDescriptor(device=device, ptr=1).device == device.strip().lower()

    @pytest.mark.parametrize(
        "fields", [{"device": "gpu:0"}, {"device": "host"}, {"device": "cpu:0"}, {"ptr": 0}, {"size": -1}, {"other": 1}]
    )
    def test_refused(self, fields):
        with pytest.raises(ValidationError):
            SerializedDescriptor(**fields)

    def test_lax_numbers_and_large_addresses(self):
        assert SerializedDescriptor(ptr="12", size=1.0) == SerializedDescriptor(ptr=12, size=True)
        assert SerializedDescriptor(ptr=2**64 + 1).ptr == 2**64 + 1
        assert SerializedDescriptor(ptr=-5).ptr == -5
        assert json.loads(SerializedDescriptor(ptr=2**63 + 1).model_dump_json())["ptr"] == 2**63 + 1

    def test_frozen_and_hashable(self):
        descriptor = SerializedDescriptor(ptr=1, size=2)
        assert len({descriptor, SerializedDescriptor(ptr=1, size=2)}) == 1
        with pytest.raises(ValidationError):
            descriptor.size = 3

    def test_to_descriptor(self):
        descriptor = SerializedDescriptor(device="cuda:3", ptr=4096, size=16).to_descriptor()
        assert (descriptor.ptr, descriptor.size, str(descriptor.device)) == (4096, 16, "cuda:3")
        with pytest.raises(ValueError, match="ordinal"):
            SerializedDescriptor(device="cuda:x", ptr=1).to_descriptor()


class TestRdmaMetadata:
    WIRE = (
        '{"descriptors":[{"device":"cpu","ptr":94121865935792,"size":1048576}],'
        '"nixl_metadata":"b64:eJw=","notification_key":"key","operation_kind":1}'
    )

    def test_wire_form(self):
        metadata = RdmaMetadata.model_validate_json(self.WIRE)
        assert metadata.model_dump_json() == self.WIRE
        assert RdmaMetadata.model_validate(metadata.model_dump()) == metadata
        assert RdmaMetadata.model_validate(metadata) is metadata
        assert metadata.model_copy(update={"notification_key": "other"}).notification_key == "other"

    def test_defaults(self):
        metadata = RdmaMetadata()
        assert metadata.model_dump() == {
            "descriptors": [],
            "nixl_metadata": "",
            "notification_key": "",
            "operation_kind": 0,
        }
        assert RdmaMetadata().descriptors is not metadata.descriptors

    @pytest.mark.parametrize("kind", [1, 2, 3, "2", OperationKind.READ])
    def test_kinds(self, kind):
        value = RdmaMetadata(operation_kind=kind).operation_kind
        assert type(value) is int
        assert value == int(kind)

    @pytest.mark.parametrize("kind", [0, 4, -1])
    def test_a_bad_kind_is_a_type_error(self, kind):
        with pytest.raises(TypeError):
            RdmaMetadata(operation_kind=kind)

    def test_frozen_unhashable_and_closed(self):
        metadata = RdmaMetadata(operation_kind=1)
        with pytest.raises(ValidationError):
            metadata.operation_kind = 2
        with pytest.raises(TypeError):
            hash(metadata)
        with pytest.raises(ValidationError):
            RdmaMetadata(extra=1)

    def test_to_descriptors(self):
        one = SerializedDescriptor(ptr=1, size=2)
        with pytest.raises(ValueError, match="no descriptor"):
            RdmaMetadata().to_descriptors()
        assert RdmaMetadata(descriptors=[one]).to_descriptors().size == 2
        assert [each.ptr for each in RdmaMetadata(descriptors=[one, one]).to_descriptors()] == [1, 1]

    def test_as_a_field(self):
        class Request(BaseModel):
            metadata: RdmaMetadata | None = None
            either: RdmaMetadata | str = ""

        request = Request(metadata=RdmaMetadata.model_validate_json(self.WIRE))
        assert Request.model_validate_json(request.model_dump_json()) == request


def test_importing_the_package_loads_nothing_large():
    program = (
        "import sys, dynamo_nixl; "
        "large = ('torch', 'numpy', 'cupy', 'pydantic', 'typer', 'rich', 'nixl'); "
        "print([name for name in large if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_all_names_exist():
    import dynamo_nixl

    assert set(dynamo_nixl.__all__) <= set(dir(dynamo_nixl))
    for name in dynamo_nixl.__all__:
        assert getattr(dynamo_nixl, name) is not None
    with pytest.raises(AttributeError):
        dynamo_nixl.nothing  # noqa: B018
