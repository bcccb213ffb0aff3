# SPDX-License-Identifier: Apache-2.0
"""The playground in headless Chromium, on a server of the packaged model."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect, sync_playwright

from tests.entrypoints.browser import (
    CHROMIUM,
    MISSING,
    PATIENCE,
    Visit,
    browser_with_microphone,
    is_sentence,
    visit,
)
from tests.entrypoints.server import API_KEY, Server, running_server
from tests.support import demonstration
from vllm.unison.packaged_model import DEFAULT_MODEL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
]

SAID = {"input": demonstration.SENTENCE, "voice": "heart"}
"""What the packaged model says, and writes when it hears itself."""
SENTENCE = SAID["input"]
PHONE = {"width": 360, "height": 740}
SPEECH, GENERATIONS, CHAT = "/v1/audio/speech", "/v1/audio/generations", "/v1/chat/completions"
RATE = 16000
_COLORS = """canvases => canvases.map(canvas => {
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
})"""

_STOP_AT = """time => new Promise(done => {
  const look = () => {
    if (document.querySelector("#transcribe [data-chosen]").textContent < time) {
      return requestAnimationFrame(look);
    }
    document.querySelector("#transcribe [data-record]").click();
    done();
  };
  look();
})"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(Path(DEFAULT_MODEL), tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def spoken(server: Server) -> bytes:
    """The sentence, as the server says it over HTTP."""
    body = SAID | {"seed": 1, "stream": False}
    status, file = server.request(SPEECH, json.dumps(body).encode())
    assert status == 200, file
    return file


@pytest.fixture(scope="module")
def recording(spoken: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with silence around it."""
    samples, rate = soundfile.read(io.BytesIO(spoken))
    silence = np.zeros(rate // 2)
    path = tmp_path_factory.mktemp("microphone") / "said.wav"
    soundfile.write(path, np.concatenate([silence, samples, silence]), rate, "PCM_16")
    return path


@pytest.fixture(scope="module")
def browser(recording: Path) -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright, browser_with_microphone(playwright, recording) as made:
        yield made


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Visit]:
    """A tab that has the key, on a desk."""
    with visit(browser, server.url) as made:
        made.give_key()
        yield made


def samples_of(file: bytes) -> Any:
    samples, rate = soundfile.read(io.BytesIO(file), dtype="int16")
    assert rate == RATE
    return samples


def speak(tab: Visit, text: str = SENTENCE, seed: int | None = 1) -> None:
    """Fill in the form, without sending it."""
    tab.page.locator("#speak-voice").select_option(SAID["voice"])
    tab.page.get_by_label("Text to say").fill(text)
    if seed is not None:
        tab.page.locator("#speak-seed").fill(str(seed))


def press(tab: Visit, name: str) -> None:
    tab.page.get_by_role("button", name=name, exact=True).click()


def says(tab: Visit, selector: str) -> str:
    """The sentence that an element says, once it says one."""
    element = tab.page.locator(selector)
    expect(element).to_have_text(re.compile(r"[.!?]$"))
    text = element.inner_text()
    assert is_sentence(text), text
    return text


def test_the_page_asks_for_the_key_and_keeps_it_in_the_tab(
    browser: Browser, server: Server
) -> None:
    with visit(browser, server.url) as tab:
        tab.page.goto(server.url)
        dialog = tab.page.get_by_role("dialog", name="This server asks for a key")
        field = dialog.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("another")
        field.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("The server does not take this key.")
        field.fill(API_KEY)
        dialog.get_by_role("button").click()
        expect(tab.page.get_by_role("tab", name="Speak")).to_be_visible()
        expect(dialog).to_be_hidden()
        kept = tab.page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie]")
        assert kept == [{"unison-key": API_KEY}, {}, ""]
        tab.page.reload()
        expect(tab.page.get_by_role("tab", name="Speak")).to_be_visible()
        # What browsers say themselves of the answers without the right key.
        assert all("401" in complaint for complaint in tab.complaints)
        tab.complaints.clear()


def test_speech_plays_while_it_is_made_and_is_what_the_server_sends(
    tab: Visit, spoken: bytes
) -> None:
    tab.open()
    speak(tab)
    press(tab, "Speak")
    tab.wait_for_takes("done")
    tab.page.locator("html[data-heard]").wait_for(state="attached")
    assert tab.page.locator("html").get_attribute("data-started-while") in ("waiting", "making")
    samples = samples_of(tab.download())
    assert np.array_equal(samples, samples_of(spoken))
    card = tab.page.locator(".take")
    expect(card.locator("[data-first]")).to_have_text(re.compile(r"^\d+\.\d+ s$"))
    expect(card.locator("[data-factor]")).to_have_text(re.compile(r"^\d+\.\d+$"))
    expect(card.locator("[data-underruns]")).to_have_text(re.compile(r"^\d+$"))
    expect(card.locator("[data-time]")).to_contain_text(f"/ 0:0{len(samples) / RATE:.1f}")


def test_guided_and_unguided_are_seen_side_by_side(tab: Visit) -> None:
    tab.open()
    speak(tab)
    scale = tab.page.locator("output[for=speak-guidance]").inner_text()
    press(tab, "Compare with unguided")
    tab.wait_for_takes("done", number=2)
    titles = tab.page.locator(".take h2")
    expect(titles).to_have_text([f"Guided, scale {scale}", "Unguided"])
    guided, unguided = (tab.page.locator(".take").nth(index) for index in range(2))
    for card in (guided, unguided):
        expect(card.locator(".spectrogram canvas")).not_to_have_count(0)
        (wave, *_), (spectrogram, *_) = (
            card.locator(f"{place} canvas").evaluate_all(_COLORS)
            for place in (".wave", ".spectrogram")
        )
        assert wave > 1 and spectrogram > 50
    left, right = guided.bounding_box(), unguided.bounding_box()
    assert left and right and left["y"] == right["y"] and left["width"] == right["width"]
    sent: list[Any] = [r.post_data_json for r in tab.requests if r.url.endswith(SPEECH)]
    assert sorted(body["guidance_scale"] for body in sent) == [1, float(scale)]
    # Only one of them is heard at a time.
    unguided.get_by_role("button", name="Play").click()
    expect(unguided.get_by_role("button", name="Pause")).to_be_visible()
    expect(guided.get_by_role("button", name="Play")).to_be_visible()


def test_what_the_server_refuses_is_said_in_a_sentence(tab: Visit) -> None:
    tab.open()
    speak(tab)
    said = set()
    for status in (400, 413, 500, 501, 503):
        error = {"message": "input must be shorter", "param": "input"}
        tab.answer(SPEECH, status, json={"error": error})
        press(tab, "Speak")
        tab.wait_for_takes("failed")
        said.add(says(tab, ".take [data-state]"))
        tab.page.unroute(f"**{SPEECH}")
    assert len(said) == 5 and "The text must be shorter." in said
    tab.complaints.clear()  # browsers' own words on a status


def test_other_failures_are_said_in_sentences(tab: Visit) -> None:
    tab.open()
    press(tab, "Speak")
    assert says(tab, "#speak-error") == "Type something to say first."
    expect(tab.page.get_by_label("Text to say")).to_be_focused()
    speak(tab, "zq" * 2000)
    press(tab, "Speak")
    tab.wait_for_takes("failed")
    assert says(tab, ".take [data-state]").startswith("The text")
    tab.page.route(f"**{SPEECH}", lambda route: route.abort())
    press(tab, "Speak")
    tab.wait_for_takes("failed")
    assert says(tab, ".take [data-state]").startswith("The server cannot be reached")
    tab.page.locator("#speak-seed").fill("0.5")
    press(tab, "Speak")
    assert says(tab, "#speak-error").startswith("The seed must be a whole number")
    tab.complaints.clear()


def test_a_server_that_is_gone_can_be_tried_again(tab: Visit) -> None:
    tab.page.route("**/v1/audio/capabilities", lambda route: route.abort())
    tab.page.goto(tab.url)
    says(tab, "#notice p")
    tab.page.unroute("**/v1/audio/capabilities")
    press(tab, "Try again")
    expect(tab.page.get_by_role("tab", name="Speak")).to_be_visible()
    tab.complaints.clear()


def test_what_is_made_can_be_stopped(tab: Visit) -> None:
    tab.open()
    tab.page.route(f"**{SPEECH}", lambda route: None)  # an answer that never comes
    speak(tab)
    press(tab, "Speak")
    tab.wait_for_takes("waiting")
    press(tab, "Stop")
    tab.wait_for_takes("stopped")
    expect(tab.page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()


def test_what_the_microphone_hears_is_written(tab: Visit) -> None:
    tab.open("transcribe")
    panel = tab.page.locator("#transcribe")
    press(tab, "Record")
    # What the microphone hears is shorter than three seconds. The page itself looks at its clock: a
    # click from here may be late, and a long silence is not what is tested.
    tab.page.evaluate(_STOP_AT, "0:03.2")
    # What goes through a microphone is not, to the sample, what the model said.
    expect(panel.locator("[data-text]")).to_contain_text(SENTENCE.split()[-1])
    expect(panel.get_by_role("button", name="Copy")).to_be_visible()
    expect(panel.locator(".take .spectrogram canvas")).not_to_have_count(0)


def test_what_a_file_says_is_written_or_why_not(tab: Visit, recording: Path) -> None:
    tab.open("transcribe")
    chooser = tab.page.locator("#transcribe [data-file]")
    chooser.set_input_files(recording)
    expect(tab.page.locator("#transcribe [data-text]")).to_have_text(SENTENCE)
    chooser.set_input_files({"name": "a.wav", "mimeType": "audio/wav", "buffer": b"no audio"})
    assert says(tab, "#transcribe [data-state]").startswith("The file")
    tab.complaints.clear()


def test_all_can_be_done_with_the_keyboard(tab: Visit) -> None:
    tab.open()
    keyboard = tab.page.keyboard
    tab.page.get_by_role("tab", name="Speak").focus()
    keyboard.press("ArrowRight")
    expect(tab.page.locator("#transcribe")).to_be_visible()
    expect(tab.page.get_by_role("tab", name="Transcribe")).to_be_focused()
    keyboard.press("Home")
    keyboard.press("Tab")
    expect(tab.page.get_by_label("Text to say")).to_be_focused()
    keyboard.type(SENTENCE)
    keyboard.press("Control+Enter")
    tab.wait_for_takes("done")
    position = tab.page.get_by_role("slider", name="Position")
    for _ in range(12):
        keyboard.press("Tab")
        ring = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        inside = tab.page.evaluate("document.activeElement.matches('[data-file], body')")
        assert ring != "none" or inside
        if position.evaluate("element => element === document.activeElement"):
            break
    expect(position).to_be_focused()
    keyboard.press("Home")
    keyboard.press("ArrowRight")
    expect(position).to_have_attribute("aria-valuetext", re.compile(r"^\S+ of \S+ seconds$"))
    keyboard.press("Tab")
    expect(tab.page.locator("[data-play]")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_meets_the_rules_of_accessibility(
    browser: Browser, server: Server, recording: Path, scheme: Any
) -> None:
    # What axe itself adds to a page is not the page's own, so its policy does not hold here.
    options = {"viewport": PHONE, "color_scheme": scheme, "bypass_csp": True}
    with visit(browser, server.url, **options) as tab:
        tab.give_key()
        tab.change_capabilities(**EVERYTHING)
        tab.open()
        speak(tab)
        press(tab, "Compare with unguided")
        tab.wait_for_takes("done", number=2)
        for panel in ("speak", "create", "transcribe", "chat"):
            tab.page.locator(f"#{panel}-tab").click()
            tab.page.locator(f"#{panel} button:visible").first.wait_for()
            width = tab.page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"], panel
            found = Axe().run(tab.page).response["violations"]
            assert not found, [
                (rule["id"], node["html"]) for rule in found for node in rule["nodes"]
            ]


MUSIC = {
    "speech": None,
    "generation": {"duration": {"minimum": 0.02, "maximum": 30.0, "default": 8.0}},
    "guidance": {"default_scale": 3.0, "needs_negative_prompt": False},
}
CLONING = {"speech": {"recording": "optional", "reference_text": "required"}}
CHATS = {
    "chat": {
        "conversations": False,
        "answers": [
            {"inputs": ["text"], "output": "audio"},
            {"inputs": ["audio"], "output": "text"},
            {"inputs": ["text", "audio"], "output": "text"},
        ],
    }
}
EVERYTHING = MUSIC | CLONING | CHATS


def test_music_has_a_description_a_negative_one_and_a_length(tab: Visit) -> None:
    tab.change_capabilities(**MUSIC)
    noise = np.random.default_rng(3).integers(-9000, 9000, (RATE // 4, 2), "<i2")
    headers = {"content-type": "audio/pcm; rate=16000; channels=2"}
    requests = tab.answer(GENERATIONS, headers=headers, body=noise.tobytes())
    tab.open("create")
    tab.page.get_by_label("Description", exact=True).fill("slow jazz")
    tab.page.get_by_label("Steer away from").fill("drums")
    tab.page.get_by_label("Duration").fill("4.5")
    tab.page.locator("#create-seed").fill("7")
    press(tab, "Compare with unguided")
    tab.wait_for_takes("done", number=2)
    fields = {"prompt": "slow jazz", "duration": 4.5, "seed": 7, "response_format": "pcm"}
    guided = fields | {"guidance_scale": 3, "negative_prompt": "drums"}
    sent = sorted((request.post_data_json for request in requests), key=len)
    assert sent == [fields | {"guidance_scale": 1}, guided]
    assert np.array_equal(samples_of(tab.download(1)), noise)
    tab.page.locator("#create-guidance").fill("1")
    press(tab, "Create")
    assert says(tab, "#create-error").startswith("Steering away needs guidance")


def test_a_voice_is_cloned_from_a_file(tab: Visit, recording: Path) -> None:
    tab.change_capabilities(**CLONING)
    requests = tab.answer(SPEECH, 500)
    tab.open()
    speak(tab)
    tab.page.get_by_label("Voice").select_option("From a recording…")
    press(tab, "Speak")
    assert says(tab, "#speak-error").startswith("Record or choose")
    tab.page.locator("#speak [data-file]").set_input_files(recording)
    press(tab, "Speak")
    assert says(tab, "#speak-error").startswith("Write what is said")
    tab.page.get_by_label("What is said in it").fill("good morning")
    press(tab, "Speak")
    tab.wait_for_takes("failed")
    (form,) = tab.page.evaluate("forms")
    assert form == {
        "input": SENTENCE,
        "seed": "1",
        "ref_audio": recording.name,
        "ref_text": "good morning",
        "guidance_scale": tab.page.locator("#speak-guidance").input_value(),
        "response_format": "pcm",
    }
    assert requests[0].headers["content-type"].startswith("multipart/form-data")
    tab.complaints.clear()


def test_chat_answers_with_text_and_with_audio(tab: Visit, recording: Path) -> None:
    tab.change_capabilities(**CHATS)
    tab.open("chat")
    tab.page.get_by_label("Answer as").select_option("Text")
    tab.page.locator("#chat [data-file]").set_input_files(recording)
    press(tab, "Send")
    answers = tab.page.locator(".message.assistant")
    expect(answers.nth(0).locator("p").first).to_have_text(SENTENCE)
    tab.page.get_by_label("Answer as").select_option("Audio")
    tab.page.locator("#chat-text").fill(SENTENCE)
    tab.page.keyboard.press("Enter")
    tab.wait_for_takes("done", within="#chat")
    assert np.abs(samples_of(tab.download())).max() > 500
    expect(tab.page.locator(".message.user")).to_have_count(2)
    tab.page.get_by_label("Answer as").select_option("Text")
    tab.page.locator("#chat-text").fill(SENTENCE)
    press(tab, "Send")
    assert says(tab, "#chat-error").startswith("The model cannot answer text with text")


def test_nothing_moves_for_those_who_want_it_still(browser: Browser, server: Server) -> None:
    with visit(browser, server.url, reduced_motion="reduce") as tab:
        tab.give_key()
        tab.open()
        tab.page.route(f"**{SPEECH}", lambda route: None)
        speak(tab)
        press(tab, "Speak")
        tab.wait_for_takes("waiting")
        lamp = "element => getComputedStyle(element, '::before').animationName"
        assert tab.page.locator(".take [data-state]").evaluate(lamp) == "none"
