"""The message endpoints: check the arguments, describe the request, send it once."""

from __future__ import annotations

from collections.abc import Sequence

from agentphone._http.requests import add_reaction, send_message
from agentphone._http.transport import Transport
from agentphone.models import Message, SentMessage, SentReaction


class AsyncMessages:
    """Sending, available as `client.messages`. To answer in a conversation, use `client.conversations.reply`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def send(
        self,
        body: str = "",
        *,
        to: str | None = None,
        recipients: Sequence[str] | None = None,
        from_number: str | None = None,
        number_id: str | None = None,
        agent_id: str | None = None,
        media_urls: Sequence[str] = (),
        reply_to: Message | str | None = None,
        send_style: str | None = None,
        channel: str | None = None,
    ) -> SentMessage:
        """Send a message to a number, an e-mail address or a group. It is never sent twice.

        It is retried only if the API certainly has not accepted it: no connection could be made, or the response was a
        429. A call that is cancelled may have sent it.

        Source: `POST /v1/messages`.

        Args:
            body: The text; it may be empty with media. It is sent as it is. The API documents no longest text; carriers
                split an SMS of more than 160 characters (70 with emoji), bill each part, and may reject long ones.
            to: The receiver: a phone number, an e-mail address (iMessage), or a group's id (`grp_...`).
            recipients: Or 2 to 32 receivers, for a new group.
            from_number: The agent's number to send from, E.164. This, `number_id` or `agent_id` is required.
            number_id: The id of that number (`num_...`).
            agent_id: The id of an agent (`agt_...`), whose first number is used.
            media_urls: Up to 20 `https://` URLs of media.
            reply_to: The message that this one answers, or its id; it has no effect on SMS.
            send_style: An effect of iMessage: `"confetti"`, `"slam"`, ...; it has no effect on SMS.
            channel: `"whatsapp"` to send there; None to let the API choose.

        Returns:
            The message as the API accepted it. The status `"sent"` means that the carrier has it.

        Raises:
            SendUnconfirmedError: It may have been sent: do not send it again before you have looked.
            APIConnectionError: The API could not be reached. Nothing was sent.
            DeadlineExceededError: The client's `deadline` ended before anything was sent.
            APIStatusError: The API rejected it. Nothing was sent.
            ClientClosedError: The client is closed. Nothing was sent.
            ValueError: There is no receiver or two kinds, no sender or nothing to send, or too many media.
            TypeError: An argument has the wrong type.
        """
        spec = send_message(
            body,
            to=to,
            recipients=recipients,
            from_number=from_number,
            number_id=number_id,
            agent_id=agent_id,
            media_urls=media_urls,
            reply_to=reply_to,
            send_style=send_style,
            channel=channel,
        )
        sent = await self._transport.send(spec)
        self._transport.sent_ids.append(sent.id)
        return sent

    async def react(self, message: Message | str, reaction: str) -> SentReaction:
        """React to a message. The reaction is never sent twice, and cannot be removed.

        Source: `POST /v1/messages/{id}/reactions`.

        Args:
            message: The message, or its id.
            reaction: `"love"`, `"like"`, `"dislike"`, `"laugh"`, `"emphasize"`, `"question"`, or one emoji.

        Returns:
            The reaction as the API accepted it.

        Raises:
            SendUnconfirmedError: It may have been sent.
            BadRequestError: The message's channel has no reactions (SMS).
            NotFoundError: The message does not exist, or the key has no access to it.
            APIConnectionError: The API could not be reached. Nothing was sent.
            DeadlineExceededError: The client's `deadline` ended before anything was sent.
            APIStatusError: The API rejected it. Nothing was sent.
            ClientClosedError: The client is closed. Nothing was sent.
            ValueError: The reaction or the id is empty.
            TypeError: An argument has the wrong type.
        """
        return await self._transport.send(add_reaction(message, reaction))
