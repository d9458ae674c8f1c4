"""Imports everything that jobs need, for a fork server. Nothing here touches CUDA or computes with a tensor: a process
that forks after either hangs or breaks its children."""

from trainer_service.recipes import environment

environment.apply()
