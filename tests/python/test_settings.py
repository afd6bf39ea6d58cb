"""How a connector's limits are set: by its arguments, by the environment, by the calls; and what is refused."""

from __future__ import annotations

import time

import pytest
from dynamo_nixl import DEFAULT, Connector, Descriptor, RdmaMetadata

from support import endings, flight
from support.endings import DONE, FAILED, LEASE_EXPIRED, TIMED_OUT
from support.flight import TCP
from support.memory import blank, pattern

DEFAULTS = {
    "lease": 600.0,
    "grace": 30.0,
    "stall_timeout": 30.0,
    "timeout": None,
    "keepalive": 5.0,
    "quarantine_limit": 1 << 30,
}
NAMES = list(DEFAULTS)
SHORT = 0.3


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(variable(name), raising=False)


def variable(name):
    return f"DYNAMO_NIXL_{name.upper()}"


def settings(**given):
    """What is set becomes what the native half gets; no NIXL is needed for that."""
    made = Connector(**given)._settings
    return {name: getattr(made, name) for name in NAMES}


def test_the_defaults():
    assert settings() == DEFAULTS
    assert settings(**dict.fromkeys(NAMES, DEFAULT)) == DEFAULTS


@pytest.mark.parametrize(("text", "lanes"), [("", None), ("0", 0), (" 3 ", 3), ("64", 64)])
def test_copy_lanes(text, lanes, monkeypatch):
    """As many as suit the machine, unless the environment says otherwise."""
    monkeypatch.setenv("DYNAMO_NIXL_COPY_LANES", text)
    assert Connector()._settings.copy_lanes == lanes


@pytest.mark.parametrize("text", ["65", "-1", "1.5", "none", "many"])
def test_copy_lanes_that_make_no_sense(text, monkeypatch):
    monkeypatch.setenv("DYNAMO_NIXL_COPY_LANES", text)
    with pytest.raises(ValueError, match="DYNAMO_NIXL_COPY_LANES must be a whole number from 0 to 64"):
        Connector()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, 0, 1, 7.0, 1e9])
def test_given(name, value, monkeypatch):
    assert settings(**{name: value}) == DEFAULTS | {name: value}
    # It wins over the environment, also over what is wrong there.
    for text in ("5", "none", "wrong"):
        monkeypatch.setenv(variable(name), text)
        assert settings(**{name: value}) == DEFAULTS | {name: value}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), (" 7 ", 7), ("0", 0), ("1e3", 1000), ("none", None), ("None", None), (" NONE ", None), ("inf", None)],
)
def test_of_the_environment(name, text, value, monkeypatch):
    monkeypatch.setenv(variable(name), text)
    assert settings() == DEFAULTS | {name: value}
    assert settings(**{name: DEFAULT}) == DEFAULTS | {name: value}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_is_none_at_all(name, text, monkeypatch):
    monkeypatch.setenv(variable(name), text)
    assert settings() == DEFAULTS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [1e300, 10**400, 1 << 64, float("inf")])
def test_what_exceeds_a_machine_word_is_no_limit(name, value, monkeypatch):
    assert settings(**{name: value}) == DEFAULTS | {name: None}
    monkeypatch.setenv(variable(name), str(value))
    assert settings() == DEFAULTS | {name: None}


def test_fractions_and_infinity():
    assert settings(lease=0.25, grace=float("inf")) == DEFAULTS | {"lease": 0.25, "grace": None}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["-1", "nan", "-inf", "ten", "1 s", "0x10"])
def test_wrong_variables(name, text, monkeypatch):
    monkeypatch.setenv(variable(name), text)
    with pytest.raises(ValueError, match=variable(name)) as raised:
        Connector()
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((wrong, ValueError) for wrong in (-1, -0.5, float("nan"), float("-inf"))),
        *((wrong, TypeError) for wrong in ("5", [], True, 1j, b"1")),
    ],
)
def test_wrong_arguments(name, value, error):
    with pytest.raises(error, match=f"^{name} "):
        Connector(**{name: value})


def test_a_connector_keeps_what_it_was_made_with(monkeypatch):
    monkeypatch.setenv("DYNAMO_NIXL_LEASE", "5")
    connector = Connector()
    monkeypatch.setenv("DYNAMO_NIXL_LEASE", "6")
    assert (connector._settings.lease, Connector()._settings.lease) == (5, 6)


@pytest.mark.nixl
def test_limits_without_end_reach_the_native_half(pair):
    assert pair.owner.call(expose_with, None) == pair.owner.call(expose_with, 1e300) == ["INIT", "STOP"]


async def expose_with(here, limit):
    limits = dict.fromkeys(NAMES, limit) | {"quarantine_limit": limit and (1 << 64) - 1}
    async with Connector(**limits) as connector:
        operations = [await connector.create_readable(Descriptor(pattern(100)), lease=limit) for _ in range(2)]
        for each in operations:
            each.metadata()
        operations[0].renew(limit)
        operations[1].cancel()
        await endings.still(here, 0.05)
        return [str(each.status) for each in operations]


@pytest.mark.nixl
@pytest.mark.parametrize("value", ["1", "0.05"])
def test_the_lease_of_the_environment(spawn, value):
    owner = spawn({"DYNAMO_NIXL_LEASE": value})
    number, _ = owner.call(endings.expose, "read", 100, lease=DEFAULT)
    assert owner.call(endings.ended, number) == LEASE_EXPIRED


@pytest.mark.nixl
def test_timeouts_that_are_refused(pair):
    number, metadata = pair.owner.call(endings.expose, "read", 4096, seed=1)
    assert pair.reader.call(try_timeouts, metadata) == {
        "text": "TypeError",
        "bool": "TypeError",
        "list": "TypeError",
        "negative": "ValueError",
        "not a number": "ValueError",
    }
    assert pair.owner.call(endings.status, number) == "INIT"
    assert pair.reader.call(endings.attempt, metadata, timeout=None) == DONE
    assert pair.owner.call(endings.ended, number) == DONE


async def try_timeouts(here, metadata):
    remote = RdmaMetadata.model_validate(metadata)
    tried = {"text": "1", "bool": True, "list": [1], "negative": -1, "not a number": float("nan")}
    raised = {}
    for name, value in tried.items():
        try:
            await here.connector.begin_read(remote, Descriptor(blank(4096)), timeout=value)
        except (TypeError, ValueError) as error:
            assert "timeout" in str(error)
            raised[name] = type(error).__name__
        with pytest.raises((TypeError, ValueError), match="lease"):
            await here.connector.create_readable(Descriptor(blank(4096)), lease=value)
        async with Connector() as connector:
            exposed = await connector.create_readable(Descriptor(blank(4096)))
            with pytest.raises((TypeError, ValueError), match="timeout"):
                await exposed.wait_for_completion(timeout=value)
            with pytest.raises((TypeError, ValueError), match="deadline"):
                await connector.aclose(deadline=value)
    return raised


@pytest.mark.nixl
@pytest.mark.parametrize("timeout", [None, DEFAULT, 60, 1e300, float("inf")], ids=str)
def test_timeouts_that_are_long_enough(pair, timeout):
    for kind in endings.KINDS:
        for size in (100, 5 << 20):
            number, metadata = pair.owner.call(endings.expose, kind, size, seed=1)
            assert pair.reader.call(endings.attempt, metadata, seed=1, timeout=timeout) == DONE
            assert pair.owner.call(endings.ended, number) == DONE


@pytest.mark.nixl
@pytest.mark.parametrize("how", ["environment", "constructor", "overridden"])
def test_the_timeout_of_a_connector(spawn, how):
    owner, reader = spawn(TCP), spawn(TCP | ({} if how == "constructor" else {"DYNAMO_NIXL_TIMEOUT": "60"}))
    if how == "environment":
        reader.call(endings.use_settings)
    elif how == "constructor":
        reader.call(endings.use_settings, timeout=60)
    endings.serve(owner, reader)
    number, metadata = owner.call(endings.expose, "read", flight.BIG)
    given = {"timeout": SHORT} if how == "overridden" else {}
    begun = reader.call(endings.begin, metadata, **given)
    if how == "overridden":
        owner.pause()
        assert reader.call(endings.ended, begun) == TIMED_OUT
        owner.resume()
        assert owner.call(endings.ended, number) == FAILED
    else:
        assert reader.call(endings.ended, begun) == DONE


@pytest.mark.nixl
@pytest.mark.parametrize("kind", endings.KINDS)
@pytest.mark.parametrize("name", ["timeout", "stall_timeout"])
def test_an_owner_that_is_stopped_costs_a_limit(spawn, kind, name):
    owner, active = spawn(TCP), spawn(TCP | {variable(name): str(SHORT)})
    for _ in range(20):
        endings.serve(owner, active)
        number, metadata = owner.call(endings.expose, kind, flight.BIG)
        begun = active.call(endings.begin, metadata)
        owner.pause()
        end = active.call(endings.ended, begun)
        owner.resume()
        assert owner.call(endings.ended, number) == (FAILED if end == TIMED_OUT else DONE)
        if end == TIMED_OUT:
            break
        active.call(endings.drop, begun)
        owner.call(endings.drop, number)
    else:
        raise AssertionError("no transfer was in the middle when its owner was stopped")
    assert active.call(endings.wait_quiesced, begun)
    endings.serve(owner, active)


@pytest.mark.nixl
def test_no_limit_on_standing_still(spawn):
    """It goes on where it stood."""
    owner, reader = spawn(TCP), spawn(TCP | {"DYNAMO_NIXL_STALL_TIMEOUT": "none"})
    number, begun = flight.catch_read(owner, reader)
    time.sleep(2 * SHORT)
    assert reader.call(endings.status, begun) == "PROC"
    owner.resume()
    assert reader.call(endings.ended, begun) == DONE
    assert owner.call(endings.ended, number) == DONE
