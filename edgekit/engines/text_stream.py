"""Give the text of tokens as it becomes whole, as edgekit-run does.

The package's own DecodeStream ends with an error where a wrong byte follows others: it decodes byte tokens in a row
together, and makes U+FFFD of each if they are not UTF-8. Here what was shown stays, and that begins at the wrong byte.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer

_WRONG = "\ufffd"
_MOST_OPEN = 3  # tokens, each a byte or more of a character that is incomplete


class TextStream:
    """Decodes tokens after a prompt, special ones left out."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], *, may_be_open: bool) -> None:
        """A prompt that `may_be_open` can end within a character, which then is the answer's."""
        self._tokenizer = tokenizer
        # What was shown last: it decides whether the space that a token begins with is text.
        self._before, self._open = list(prompt), list[int]()
        self._shown = ""  # of the open tokens' text: what a prompt ends with before the character that is open
        for count in range(min(_MOST_OPEN, len(prompt)) + 1) if may_be_open else ():
            whole = len(prompt) - count
            if not self._decode(prompt[:whole]).endswith(_WRONG):
                self._before, self._open = list(prompt[:whole]), list(prompt[whole:])
                self._shown = self._text().rstrip(_WRONG)
                break

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        self._open.append(token)
        text = self._text()
        if text.endswith(_WRONG):
            return ""
        # Before the first of other characters spaces are counted: tokenizers leave some out at the start of a text.
        self._before = self._open if text.strip(" ") else self._before + self._open
        self._open, self._shown = [], ""
        return text

    def finish(self) -> str:
        """The rest: U+FFFD for what stayed incomplete."""
        return self._text()

    def _text(self) -> str:
        before, after = self._decode(self._before), self._decode([*self._before, *self._open])
        # Where a wrong byte changed what was shown, no space is at stake.
        text = after.removeprefix(before) if after.startswith(before) else self._decode(self._open)
        return text.removeprefix(self._shown)

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text
