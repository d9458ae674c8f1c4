"""Fixtures of evaluations over real services: a broker, an object store, a task service that knows just enough."""

from services.workerkit.tests import fixtures

shared_nats_server, bus, store = fixtures.shared_nats_server, fixtures.bus, fixtures.store
desk_port, office = fixtures.desk_port, fixtures.office
