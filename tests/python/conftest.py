"""Fixtures and plugins of all Python tests."""

pytest_plugins = ["plugins.skips", "support.fixtures", "support.wires", "pytester"]
