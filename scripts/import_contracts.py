"""An import-linter contract of our own: a package imports nothing but the standard library and what is named."""

import sys
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):
    """Direct imports of a package beyond the standard library, itself and the allowed packages break it."""

    type_name = "only"

    source_module = fields.StringField()
    allowed_modules = fields.ListField(subfield=fields.StringField(), required=False, default=[])

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        source = str(self.source_module)
        if source not in graph.modules:
            raise ValueError(f"Module '{source}' does not exist.")
        allowed: Any = self.allowed_modules
        fine = (source, *allowed, *sys.stdlib_module_names)
        found = sorted(
            {
                (importer, imported)
                for importer in (source, *graph.find_descendants(source))
                for imported in graph.find_modules_directly_imported_by(importer)
                if not any(imported == name or imported.startswith(f"{name}.") for name in fine)
            }
        )
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported in check.metadata["found"]:
            output.print_error(f"{importer} imports {imported}", bold=False)
        output.new_line()
