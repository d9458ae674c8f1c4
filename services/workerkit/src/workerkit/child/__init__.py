"""The side of a child: what a process that does one job needs to speak with its worker."""
