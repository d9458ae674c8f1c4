"""Use cases of templates; each sees the platform's own and what the caller may see of users'."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import FailedPrecondition, InvalidArgument
from servicekit.identity import Principal
from task_service.convert import timestamp
from task_service.database.access import Database
from task_service.database.paging import DEFAULT_PAGE_SIZE, digest, page_token, parse_page_token
from task_service.templates.builtin import builtin_templates
from task_service.templates.records import Found, TemplateRepository, template_not_found
from task_service.templates.rules import template_problems, type_of
from tunesmith.task.v1 import spec_pb2
from tunesmith.task.v1 import template_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Templates:
    """The templates there are."""

    database: Database

    async def create(self, principal: Principal, request: pb.CreateTemplateRequest) -> pb.Template:
        """A new template, or the next version of the caller's template of that name. Raises InvalidArgument."""
        if problems := template_problems(request):
            raise InvalidArgument(problems=problems)

        async def transaction(session: AsyncSession) -> pb.Template:
            return template_message(
                await TemplateRepository(session).add(
                    principal.user,
                    request.name,
                    kind=request.type or type_of(request.spec),
                    description=request.description,
                    spec=request.spec.SerializeToString(deterministic=True),
                )
            )

        async with self.database.caller():
            return await self.database.transaction(transaction)

    async def get(self, principal: Principal, template_id: str, version: int = 0) -> pb.Template:
        """A template in a version, the newest one for 0. Raises NotFound."""
        if (builtin := builtin_templates().get(template_id)) is not None:
            if version not in (0, builtin.version):
                raise template_not_found(f"{template_id} in version {version}")
            return builtin
        async with self.database.caller(), self.database.reading(single_statement=True) as session:
            return template_message(await TemplateRepository(session).get(principal, template_id, version))

    async def page(self, principal: Principal, request: pb.ListTemplatesRequest) -> tuple[list[pb.Template], str]:
        """A page: the platform's own, then the caller's, newest first; and the token of the next page."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        query = digest(["templates", request.type])
        seen, before = parse_page_token(request.page_token, query, int, int) if request.page_token else (0, 0)
        builtin = [row for row in builtin_templates().values() if request.type in ("", row.type)]
        page = builtin[seen : seen + size]
        limit = size + 1 - len(page)
        async with self.database.caller(), self.database.reading(single_statement=True) as session:
            own = await TemplateRepository(session).page(principal.user, kind=request.type, before=before, limit=limit)
        shown = own[: size - len(page)]
        last = shown[-1][0].number if shown else before
        more = len(own) > len(shown) or seen + len(page) < len(builtin)
        token = page_token(query, seen + len(page), last) if more else ""
        return page + [template_message(found) for found in shown], token

    async def delete(self, principal: Principal, template_id: str) -> None:
        """Removes a user's template with all versions. Raises NotFound, FailedPrecondition for the platform's own."""
        if template_id in builtin_templates():
            raise FailedPrecondition(f"{template_id} is the platform's own and stays", reason="TEMPLATE_BUILTIN")
        async with self.database.caller():
            await self.database.transaction(lambda session: TemplateRepository(session).delete(principal, template_id))


def template_message(found: Found) -> pb.Template:
    """A user's template as callers see it."""
    row, version = found
    return pb.Template(
        id=row.id,
        name=row.name,
        version=version.version,
        spec=spec_pb2.FinetuneSpec.FromString(version.spec),
        type=version.type,
        description=version.description,
        create_time=timestamp(version.create_time),
    )
