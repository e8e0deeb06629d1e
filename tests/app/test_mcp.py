"""The endpoints as tools of an MCP server."""

import asyncio

import pytest

pytest.importorskip("mcp", reason="the tools of MCP need the package mcp")


def test_every_endpoint_is_a_tool_and_a_refusal_is_in_words(serve_app):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def use(address):
        async with (
            streamablehttp_client(f"{address}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            drawn = await session.call_tool("draw", {"classes": ["1"], "steps": 2})
            refused = await session.call_tool("set_adapter", {"name": "nobody"})
            server = await session.call_tool("depth", {"picture": {"path": "/etc/passwd"}})
            return tools, drawn, refused, server

    tools, drawn, refused, server = asyncio.run(use(serve_app("--mcp")))
    assert len(tools) == 15 and all(tool.description for tool in tools)
    assert not drawn.isError and "Drawn: 1 images, 2 steps" in drawn.content[0].text
    assert refused.isError and "no adapter 'nobody' here" in refused.content[0].text
    assert server.isError and "files of the server are not read" in server.content[0].text
