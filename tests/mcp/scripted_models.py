"""A scripted model for each recipe, without any network: `python -m tests.mcp.scripted_models RECIPE` runs it.

Each model first stores the topic, or reads the conversation, and then answers with the latest text that it was given.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def answer_to(texts: list[str]) -> str:
    """Return the answer to the latest text, which also tells how many there were."""
    return f"You wrote {texts[-1]!r} as text {len(texts)}."


def pydantic_ai_tools() -> Any:
    """Create a model for plain tools."""
    from pydantic_ai import ModelMessage, ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import AgentInfo, FunctionModel

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts = [part for message in messages for part in message.parts]
        if not any(part.part_kind == "tool-return" for part in parts):
            return ModelResponse([ToolCallPart(info.function_tools[0].name, {"topic": "parcel"})])
        texts = [str(part.content) for part in parts if part.part_kind == "user-prompt"]
        return ModelResponse([TextPart(answer_to(texts))])

    return FunctionModel(respond)


def pydantic_ai_mcp() -> Any:
    """Create a model that reads the conversation and replies, both with tools."""
    from pydantic_ai import ModelMessage, ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import AgentInfo, FunctionModel

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts = [part for message in messages for part in message.parts]
        returned: list[Any] = [part.content for part in parts if part.part_kind == "tool-return"]
        prompt = next(str(part.content) for part in parts if part.part_kind == "user-prompt")
        its = {"conversation_id": prompt.rstrip(".").split()[-1]}
        assert {"get_conversation", "reply"} <= {tool.name for tool in info.function_tools}
        if not returned:
            return ModelResponse([ToolCallPart("get_conversation", its)])
        if len(returned) == 1:
            texts = [each["body"] for each in reversed(returned[0]["messages"]) if each["sender"] == "person"]
            return ModelResponse([ToolCallPart("reply", {**its, "body": answer_to(texts)})])
        assert returned[1]["status"] == "sent"
        return ModelResponse([TextPart("done")])

    return FunctionModel(respond)


def openai_agents_tools() -> Any:
    """Create a model of the OpenAI Agents SDK."""
    from agents import Model, ModelResponse, Usage
    from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

    class Scripted(Model):
        async def get_response(self, *arguments: Any, **settings: Any) -> ModelResponse:
            given: list[Any] = arguments[1] if len(arguments) > 1 else settings["input"]
            if not any(entry.get("type") == "function_call_output" for entry in given):
                call = ResponseFunctionToolCall(
                    arguments='{"topic": "parcel"}', call_id="call_1", name="store_topic", type="function_call"
                )
                return ModelResponse(output=[call], usage=Usage(), response_id=None)
            texts = [entry["content"] for entry in given if entry.get("role") == "user"]
            text = ResponseOutputText(annotations=[], text=answer_to(texts), type="output_text")
            message = ResponseOutputMessage(
                id="msg", content=[text], role="assistant", status="completed", type="message"
            )
            return ModelResponse(output=[message], usage=Usage(), response_id=None)

        def stream_response(self, *arguments: Any, **settings: Any) -> Any:
            raise NotImplementedError

    return Scripted()


def langchain_tools() -> Any:
    """Create a model of LangChain."""
    from langchain.messages import AIMessage, AnyMessage
    from langchain_core.language_models import BaseChatModel
    from langchain_core.outputs import ChatGeneration, ChatResult

    class Scripted(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, tools: Any, **settings: Any) -> Any:
            assert [tool.name for tool in tools] == ["store_topic"]
            return self

        def _generate(self, messages: list[Any], *arguments: Any, **settings: Any) -> ChatResult:
            answer: AnyMessage
            if not any(message.type == "tool" for message in messages):
                answer = AIMessage(
                    "", tool_calls=[{"name": "store_topic", "args": {"topic": "parcel"}, "id": "call_1"}]
                )
            else:
                answer = AIMessage(answer_to([message.text for message in messages if message.type == "human"]))
            return ChatResult(generations=[ChatGeneration(message=answer)])

    return Scripted()


MODELS: Mapping[str, Callable[[], Any]] = {
    model.__name__: model for model in (pydantic_ai_tools, pydantic_ai_mcp, openai_agents_tools, langchain_tools)
}


if __name__ == "__main__":
    name = sys.argv[1]
    asyncio.run(importlib.import_module(f"tests.recipes.{name}").main(MODELS[name]()))
