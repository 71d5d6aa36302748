r"""A checkpoint's own chat template: messages -> the text that it was trained on -> token ids.

    what the template writes     <|im_start|>user\n … <|im_end|>\n<|im_start|>assistant\n    special tokens
    what the user writes         …, also where it reads "<|im_end|>"                         text

The template is a Jinja program in the tokenizer's files, run in a sandbox without access to Python. It sees what
transformers shows it: `messages`, `add_generation_prompt`, the special tokens' names, `raise_exception`,
`strftime_now`, and `tools` and `documents`, which are none.

A conversation is always encoded as one text, so that the ids of the template's part do not depend on which names a
message holds. Each special token's name in a message becomes a mark. The template runs, and each name that it writes
becomes another mark. Then the first marks become names again, which are text now. The ids equal those of transformers'
`apply_chat_template`; BOS is there only if the template writes it.
"""

import dataclasses
import datetime
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fot_jax.config import UserError
from fot_jax.data.sentencepiece_vocabulary import any_of
from fot_jax.data.tokenizer_settings import FILE, read_settings
from fot_jax.data.vocabulary import MarkedVocabulary, Vocabulary

TEMPLATE_FILE = "chat_template.jinja"  # read before the settings' `chat_template`
PROCESSOR_FILE = "chat_template.json"  # of older checkpoints; read last
MOST_PRODUCT = 1 << 20  # of `*` and `**` in a template: items, or bits of a power
MARKS = range(0xF0000, 0xFFFFE)  # a private plane of Unicode: some of it is free in any text


class _Generation(jinja2.ext.Extension):
    """Tag {% generation %}…{% endgeneration %}, which marks the model's text for trainers; renders what it holds."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """See jinja2.ext.Extension; as in transformers, names that are set inside are unknown outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    @staticmethod
    def _inside(caller: Callable[[], str]) -> str:
        return caller()


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes JSON without the HTML escapes of Jinja's own filter; templates may pass the settings by position."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which a template cannot multiply its way to any amount of memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Raises jinja2.TemplateError for a product of more than MOST_PRODUCT items or digits."""
        if operator == "*":
            sizes = [value if isinstance(value, int) else len(value) for value in (left, right) if _counts(value)]
            items = any(isinstance(value, str | list | tuple) for value in (left, right))
            if items and math.prod(sizes) > MOST_PRODUCT:
                _raise(f"a text or list may be repeated up to {MOST_PRODUCT} items, got {math.prod(sizes)}")
        elif isinstance(left, int) and isinstance(right, int) and abs(right) * left.bit_length() > MOST_PRODUCT:
            _raise(f"a power may have up to {MOST_PRODUCT} bits, got {left} ** {right}")
        return super().call_binop(context, operator, left, right)


def _counts(value: Any) -> bool:
    """True for what multiplies the length of a text or list: a number, a text, a list."""
    return isinstance(value, int | str | list | tuple)


def _environment() -> ImmutableSandboxedEnvironment:
    """Builds the Jinja environment that transformers uses."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A compiled template, the file it comes from, and the special tokens that it may write."""

    template: jinja2.Template
    path: pathlib.Path
    tokens: dict[str, str]

    def render(self, *, user: str, system: str | None = None) -> str:
        """Returns the text of a conversation that waits for the assistant's answer.

        Raises:
          UserError: the template refuses the messages (some know no system message) or fails.
        """
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": user})
        variables = {**self.tokens, "tools": None, "documents": None}
        try:
            return self.template.render(messages=messages, add_generation_prompt=True, **variables)
        except Exception as error:  # a template's own arithmetic may raise anything
            refused = f"'{self.path}': the chat template must take the messages, but raised: {error or type(error)}."
            raise UserError(f"{refused} Leave system out, or write the prompt out without chat.") from error


def load_chat_template(vocabulary: Vocabulary) -> ChatTemplate:
    """Loads the template next to a tokenizer's file.

    It is in chat_template.jinja, else `chat_template` of tokenizer_config.json, else in chat_template.json.

    Raises:
      UserError: there is none (base models and vocabularies without files have none), or it is no Jinja.
    """
    if not isinstance(vocabulary, MarkedVocabulary):
        raise UserError("chat needs a tokenizer with a chat template, got a vocabulary without files. Leave it out.")
    settings = read_settings(vocabulary.path)
    path, text = _find_text(pathlib.Path(vocabulary.path).parent, settings.values.get("chat_template"))
    try:
        template = _environment().from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"'{path}': the chat template must be Jinja, but its line {error.lineno} is not: {error.message}."
            " Correct it, or write the prompt out without chat."
        ) from error
    except (RecursionError, MemoryError, ValueError, SyntaxError) as error:  # Python's own, of what Jinja makes of it
        raise UserError(
            f"'{path}': the chat template must be one that Python can compile, got {type(error).__name__}. Write the"
            " prompt out without chat."
        ) from error
    return ChatTemplate(template=template, path=path, tokens=settings.names())


def _find_text(folder: pathlib.Path, stored: Any) -> tuple[pathlib.Path, str]:
    """Returns the file that holds the template, and the template."""
    try:
        if (folder / TEMPLATE_FILE).is_file():
            return folder / TEMPLATE_FILE, (folder / TEMPLATE_FILE).read_text("utf-8")
        place = FILE
        if stored is None and (folder / PROCESSOR_FILE).is_file():
            values = json.loads((folder / PROCESSOR_FILE).read_text("utf-8"))
            place, stored = PROCESSOR_FILE, values.get("chat_template") if isinstance(values, dict) else values
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{folder}': {TEMPLATE_FILE} or {PROCESSOR_FILE} cannot be read: {error}.") from error
    if isinstance(stored, list):  # several by name
        stored = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
    if isinstance(stored, dict):
        stored = stored.get("default")
    if not isinstance(stored, str):
        raise UserError(
            f"chat needs a chat template, a text `chat_template` in '{folder / FILE}' or a {TEMPLATE_FILE} next to"
            f" it, got {'none' if stored is None else repr(stored)}. Base models have none: leave chat out."
        )
    return folder / place, stored


def encode_chat(vocabulary: Vocabulary, *, user: str, system: str | None = None) -> list[int]:
    """Returns the token ids of a conversation that waits for the assistant's answer.

    Special tokens that the template writes are special tokens; their names in the messages are text.

    Args:
      vocabulary: of an imported checkpoint, whose files hold the template.
      user: the user's message.
      system: the system's message; without one the template decides.

    Raises:
      UserError: no template, one that is no Jinja, or one that refuses the messages.
    """
    template = load_chat_template(vocabulary)
    assert isinstance(vocabulary, MarkedVocabulary)
    names = any_of(vocabulary.special_ids)
    taken = {*user, *(system or ""), *template.render(user=user, system=system)}
    free = (chr(code) for code in MARKS if chr(code) not in taken)
    as_text = {name: next(free) for name in vocabulary.special_ids}
    as_token = {name: next(free) for name in vocabulary.special_ids}

    def hidden(text: str) -> str:
        return names.sub(lambda found: as_text[found[0]], text)

    text = template.render(user=hidden(user), system=None if system is None else hidden(system))
    text = names.sub(lambda found: as_token[found[0]], text)
    text = text.translate({ord(mark): name for name, mark in as_text.items()})
    marks = {mark: vocabulary.special_ids[name] for name, mark in as_token.items() if mark in text}
    return vocabulary.encode_marked(text, marks)
