"""Templates: named sets of parameters, the platform's own and users' versions of theirs."""
