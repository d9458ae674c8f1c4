"""What the template commands do."""

from collections.abc import Iterable, Sequence

from google.protobuf.json_format import MessageToDict
from rich.table import Column, Table
from rich.text import Text

from tunesmith.cli import text
from tunesmith.cli.commands import Session, as_json
from tunesmith.cli.pages import collect
from tunesmith.cli.render import flat
from tunesmith.cli.wish import Wish
from tunesmith.task.v1.template_service_pb2 import CreateTemplateRequest, ListTemplatesRequest, Template


class TemplateSession(Session):
    """A session about templates."""

    def list_templates(self, kind: str) -> None:
        """Prints the platform's templates and the caller's own."""

        def page(size: int, token: str) -> tuple[Sequence[Template], str]:
            answer = self.client.templates.list_page(ListTemplatesRequest(type=kind, page_size=size, page_token=token))
            return answer.templates, answer.next_page_token

        self.listed(collect(page), _template_table, "no templates")

    def show_template(self, template_id: str, version: int) -> None:
        """Prints a template and what it sets."""
        template = self.client.templates.get(template_id, version=version)
        if self.json:
            print(as_json(template, indent=2))
            return
        self.facts(
            {
                "id": template.id,
                "name": template.name,
                "version": str(template.version),
                "type": template.type,
                "for": template.description,
                "saved": text.moment(template.create_time),
            }
        )
        table = Table("parameter", "value", box=None, pad_edge=False)
        for path, value in flat(MessageToDict(template.spec, preserving_proto_field_name=True)):
            table.add_row(path, Text(text.harmless(str(value))))
        self.console.print(table)

    def save_template(self, name: str, wish: Wish, description: str) -> None:
        """Saves a template and says under which id and version."""
        request = CreateTemplateRequest(name=name, spec=wish.parameters_only(), description=description)
        template = self.client.templates.save(request)
        if self.json:
            print(as_json(template))
        else:
            print(f"{template.id} {text.harmless(template.name)} version {template.version}")

    def delete_template(self, template_id: str) -> None:
        """Deletes a template and says so."""
        self.client.templates.delete(template_id)
        self.told_deleted(template_id)


def _template_table(found: Iterable[Template]) -> Table:
    table = Table(Column("id", no_wrap=True), "name", "version", "type", "", "for", box=None, pad_edge=False)
    for item in found:
        marks = ["built in"] * item.builtin + ["default"] * item.default_of_type
        table.add_row(
            item.id,
            Text(text.harmless(item.name)),
            str(item.version),
            item.type,
            ", ".join(marks),
            Text(text.harmless(item.description)),
        )
    return table
