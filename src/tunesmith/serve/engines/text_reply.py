"""A reply of an engine that sends text and no ids: pieces, stop strings and the end, as serve.reply makes them of ids.

Not here: where the text comes from (ollama, plain_openai). Its tokens are counted by the engine; of a reply that is cut
at a stop string they are counted again, from the text.
"""

from __future__ import annotations

import time

from tunesmith.contender import Reply
from tunesmith.serve.engines.lanes import Items
from tunesmith.serve.reply import Choice, Piece, Writer, held_back


class TextReply:
    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.whole = ""
        self.sent = 0  # characters
        self.start_s = time.perf_counter()

    def push(self, text: str) -> list[Piece | Choice]:
        """What new text brings; nothing more may be pushed after a Choice."""
        before, self.whole = len(self.whole), self.whole + text
        stops = self.writer.ask.stop
        found = [at for stop in stops if (at := self.whole.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if found:
            self.whole = self.whole[: min(found)]
            return self.end("stop", self.writer.renderer.count_tokens(self.whole))
        return self._pieces(len(self.whole) - held_back(self.whole, stops))

    def items(self, text: str) -> Items:
        """As `push`, and None where the text brings nothing yet."""
        items = self.push(text)
        yield from items
        if not items:
            yield None

    def end(self, reason: str, num_tokens: int) -> list[Piece | Choice]:
        latency_s = time.perf_counter() - self.start_s
        reply = Reply(self.whole, self.writer.prompt_tokens, num_tokens, latency_s, reason)
        return [*self._pieces(len(self.whole)), Choice(self.writer.index, reply)]

    def _pieces(self, safe: int) -> list[Piece | Choice]:
        if safe <= self.sent or not self.writer.ask.pieces:
            return []
        text, self.sent = self.whole[self.sent : safe], safe
        return [Piece(self.writer.index, text)]
