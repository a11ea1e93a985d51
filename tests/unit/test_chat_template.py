"""Templates come from model files: they are rendered, and can do nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from liquidcli.errors import LiquidError
from liquidcli.runtime import template as templates
from liquidcli.runtime.template import JinjaFormat, PlainFormat, chat_format

HELLO = [{"role": "user", "content": "Hello"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
has_limits = pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")


@pytest.fixture
def render() -> Iterator:
    made = []

    def run(source: str, messages: list = HELLO, **options) -> str:
        made.append(JinjaFormat(source, "<s>", "</s>"))
        return made[-1].render(messages, **options)

    yield run
    for each in made:
        each.close()


def test_messages_become_the_text_the_model_was_trained_on(render) -> None:
    assert render(CHATML) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_what_templates_of_the_field_use_is_there(render) -> None:
    source = """
    {%- set ns = namespace(n=0) -%}
    {%- for m in messages -%}
        {%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}
        {%- set ns.n = ns.n + 1 -%}
        {%- generation -%}{{ m.content | trim }}{%- endgeneration -%}
        {%- break -%}
    {%- endfor -%}
    {{ bos_token }}{{ ns.n }}{{ {'a': 'é<'} | tojson }}{{ strftime_now('%Y') | length }}{{ eos_token }}"""
    assert render(source, [{"role": "user", "content": " hi "}] * 2) == 'hi<s>1{"a": "é<"}4</s>'


def test_a_worker_answers_many_times_and_after_errors() -> None:
    chat = JinjaFormat("{{ messages[0].content }}{{ raise_exception('no') if messages[0].content == 'bad' }}")
    try:
        for content in ("one", "bad", "zwei ü \n 🙂"):
            if content == "bad":
                with pytest.raises(LiquidError, match="no"):
                    chat.render([{"role": "user", "content": content}])
            else:
                assert chat.render([{"role": "user", "content": content}]) == content
    finally:
        chat.close()


def test_a_template_without_a_system_role_gets_the_prompt_merged(render) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[{{ m.content }}]{% endfor %}"
    )
    assert render(source, [{"role": "system", "content": "Be brief."}, *HELLO]) == "[Be brief.\n\nHello]"
    with pytest.raises(LiquidError, match="no system role"):
        render(source, [{"role": "system", "content": "Be brief."}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ open('/etc/passwd').read() }}",
        "{% if",
        "{{ 1 / 0 }}",
        "{{ nothing.here.at.all }}",
    ],
)
def test_no_template_reaches_out_of_the_sandbox(render, source: str) -> None:
    with pytest.raises(LiquidError, match="chat template of this model failed"):
        render(source)


@has_limits
@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ '%0999999999999d' % 3 }}",
    ],
)
def test_memory_is_bounded(render, source: str) -> None:
    with pytest.raises(LiquidError, match=r"memory|ended early"):
        render(source)


def test_output_is_bounded(render, monkeypatch) -> None:
    monkeypatch.setattr(templates, "MAX_TEXT_CHARS", 1000)
    with pytest.raises(LiquidError, match="more than 1000 characters"):
        render("{% for i in range(9999) %}{{ i }}{% endfor %}")


def test_time_is_bounded_and_the_worker_is_gone(monkeypatch) -> None:
    monkeypatch.setattr(templates, "RENDER_SECONDS", 1.0)
    chat = JinjaFormat("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(LiquidError, match="longer than 1 s"):
        chat.render(HELLO)
    assert chat._worker._process.poll() is not None
    with pytest.raises(LiquidError, match="ended early"):
        chat.render(HELLO)


@pytest.mark.parametrize(("wanted", "blamed", "code"), [("{{ 1 / 0 }}", "was given", 2), (None, "of this model", 1)])
def test_what_failed_is_what_is_blamed(wanted: str | None, blamed: str, code: int) -> None:
    model = SimpleNamespace(bos=-1, eos=-1)
    chat = chat_format(model, "{{ 1 / 0 }}", wanted)
    try:
        with pytest.raises(LiquidError, match=f"template .*{blamed} failed: .*zero") as failure:
            chat.render(HELLO)
        assert failure.value.exit_code == code
    finally:
        chat.close()


def test_a_template_of_absurd_size_is_not_even_sent() -> None:
    with pytest.raises(LiquidError, match="characters"):
        JinjaFormat("x" * (templates.MAX_TEMPLATE_CHARS + 1))


def test_plain_text_is_what_was_said_in_order() -> None:
    assert PlainFormat().render([{"role": "user", "content": "Once"}, {"role": "assistant", "content": "upon"}]) == (
        "Once\nupon"
    )
