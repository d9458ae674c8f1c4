"""Users' templates in the database: a name, and its versions, which never change."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Row, Select, delete, insert, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import NotFound
from servicekit.identity import Principal
from task_service.database.access import current_time
from task_service.database.models import TemplateRow, TemplateVersionRow
from task_service.database.types import storable
from task_service.ids import new_id

Found = Row[TemplateRow, TemplateVersionRow]


def template_not_found(template_id: str) -> NotFound:
    """The error for a template that does not exist, or not for this caller."""
    return NotFound(
        f"there is no template {template_id}", reason="TEMPLATE_NOT_FOUND", metadata={"template_id": template_id}
    )


def template_visible_to(principal: Principal) -> ColumnElement[bool]:
    """The condition that limits a query to what a caller may see: a user's own templates, for others all."""
    return true() if principal.is_admin or principal.is_service else TemplateRow.owner == principal.user


class TemplateRepository:
    """Templates within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, principal: Principal, template_id: str, version: int = 0) -> Found:
        """A template in a version, the newest one for 0. Raises NotFound."""
        chosen = TemplateVersionRow.version == (version or TemplateRow.version)
        query = _versions().where(TemplateRow.id == storable(template_id), chosen, template_visible_to(principal))
        found = (await self._session.execute(query)).one_or_none()
        if found is None:
            what = f"{template_id} in version {version}" if version else template_id
            raise template_not_found(what)
        return found

    async def add(self, owner: str, name: str, *, kind: str, description: str, spec: bytes) -> Found:
        """The next version of the owner's template of that name."""
        row = await self._locked(owner, name)
        row.version += 1
        version = TemplateVersionRow(
            template_number=row.number,
            version=row.version,
            type=kind,
            description=description,
            spec=spec,
            create_time=await current_time(self._session),
        )
        self._session.add(version)
        await self._session.flush()
        return (await self._session.execute(_versions().where(_newest(), TemplateRow.number == row.number))).one()

    async def page(self, owner: str, *, kind: str, before: int, limit: int) -> Sequence[Found]:
        """The owner's newest templates with a number below before, in their newest versions; 0 begins at the end."""
        query = _versions().where(TemplateRow.owner == owner, _newest())
        query = query.where(TemplateRow.number < before) if before else query
        query = query.where(TemplateVersionRow.type == storable(kind)) if kind else query
        return (await self._session.execute(query.order_by(TemplateRow.number.desc()).limit(limit))).all()

    async def delete(self, principal: Principal, template_id: str) -> None:
        """Removes a template with all its versions. Raises NotFound."""
        chosen = (TemplateRow.id == storable(template_id)) & template_visible_to(principal)
        removed = await self._session.execute(delete(TemplateRow).where(chosen).returning(TemplateRow.number))
        if removed.first() is None:
            raise template_not_found(template_id)

    async def _locked(self, owner: str, name: str) -> TemplateRow:
        query = select(TemplateRow).where(TemplateRow.owner == owner, TemplateRow.name == name).with_for_update()
        row = await self._session.scalar(query)
        if row is None:
            try:
                async with self._session.begin_nested():
                    values = {"id": new_id(), "owner": owner, "name": name, "version": 0}
                    await self._session.execute(insert(TemplateRow).values(values))
            except IntegrityError:
                pass  # another call was faster
            row = (await self._session.scalars(query)).one()
        return row


def _versions() -> Select[TemplateRow, TemplateVersionRow]:
    same = TemplateVersionRow.template_number == TemplateRow.number
    return select(TemplateRow, TemplateVersionRow).join(TemplateVersionRow, same)


def _newest() -> ColumnElement[bool]:
    return TemplateVersionRow.version == TemplateRow.version
