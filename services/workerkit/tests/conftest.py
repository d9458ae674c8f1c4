"""Fixtures of a worker under test."""

from services.workerkit.tests import fixtures

shared_nats_server, bus, store = fixtures.shared_nats_server, fixtures.bus, fixtures.store
desk, desk_port, office = fixtures.desk, fixtures.desk_port, fixtures.office
