"""Allocation candidates: who could serve a request."""

from __future__ import annotations

import asyncio

from starlette.responses import Response

from kilonova.services.placement import queries
from kilonova.services.placement.call import At, Call, Routes
from kilonova.services.placement.candidates.generate import generate
from kilonova.services.placement.candidates.query import read
from kilonova.services.placement.candidates.render import answer
from kilonova.web.json import encoder


async def index(call: Call) -> Response:
    call.need_admin()
    wanted = read(call)
    root_traits = wanted.root_required | wanted.root_forbidden
    view, _ = await call.views.look(lambda tx: queries.check_names(tx, wanted.groups, root_traits))

    def work() -> bytes:
        found = generate(view, wanted, call.placement.options)
        return encoder.encode(answer(view, wanted, found, call.version))

    # It may be much: the loop goes on meanwhile.
    return call.answer(await asyncio.to_thread(work))


ROUTES: Routes = {"/allocation_candidates": {"GET": At(index, 10)}}
