"""The page in a real browser: what lights up, what the slider says, keys, folding, and names that are no markup."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from browser import overlaps
from test_commands import run
from torch import nn

import fxprune
from fxprune.drawing import page as pages
from fxprune.drawing.scene import Scene

NETWORKS = ("resnet18", "densenet201", "shufflenet_v2_x1_0")
SCRIPT = "<script>alert(1)</script>"
HOSTILE = f"{SCRIPT}\u2028</text>&amp;'"


@dataclass
class Drawn:
    """A network with its page on disk."""

    model: nn.Module
    inputs: torch.Tensor
    deps: fxprune.DependencyGraph
    scene: Scene
    file: Path


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drawn]:
    known: dict[str, Drawn] = {}

    def draw(name: str) -> Drawn:
        if name not in known:
            model = fxprune.models.randomize(torchvision.models.get_model(name, weights=None)).eval()
            inputs = torch.zeros(1, 3, 64, 64)
            deps = fxprune.DependencyGraph.from_model(model, inputs)
            file = tmp_path_factory.mktemp("pages") / f"{name}.html"
            file.write_text(pages.page_html(deps), encoding="utf-8")
            known[name] = Drawn(model, inputs, deps, Scene.of(deps), file)
        return known[name]

    return draw


def _find(tab: Any, name: str) -> Any:
    """Go to a layer by the search box, and give its box."""
    tab.keyboard.press("Escape")
    tab.keyboard.press("/")
    tab.keyboard.insert_text(name)
    tab.keyboard.press("Enter")
    return tab.locator(f"[data-name={json.dumps(name)}]").first


def _lit(tab: Any, role: str) -> set[str]:
    return set(tab.eval_on_selector_all(f".fxg-box.fxg-{role}", "boxes => boxes.map(box => box.dataset.name)"))


def _boxes(tab: Any) -> int:
    return int(tab.inner_text("[data-fxg=count]").split()[0])


# What lights up -------------------------------------------------------------------------------------------------------


def _layers_to_click(deps: fxprune.DependencyGraph) -> list[str]:
    """A producer among several, a follower, a layer of many groups, and a frozen one."""
    largest = max(deps.prunable, key=lambda group: (len(group.producers), group.size))
    many = max(deps.layers, key=lambda layer: len(deps.group_of(layer)))
    frozen = next(group for group in deps.groups if group.frozen)
    return [largest.producers[-1], largest.followers[0], many, frozen.producers[0]]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_click_lights_up_exactly_the_layers_of_the_group(
    name: str, drawn: Callable[[str], Drawn], show: Callable[..., Any]
) -> None:
    network = drawn(name)
    tab = show(network.file)
    tab.click("[data-fxg=unfold-all]")
    assert _boxes(tab) == len(network.scene.blocks)
    for layer in _layers_to_click(network.deps):
        box = _find(tab, layer)
        tab.keyboard.press("Escape")
        assert tab.locator(".fxg-lit").count() == 0
        box.click()
        tab.click("[data-fxg=fit]")
        groups = network.deps.group_of(layer)
        assert groups
        for role, of in (("makes", "producers"), ("follows", "followers"), ("reads", "consumers")):
            assert _lit(tab, role) == {member for group in groups for member in getattr(group, of)}, (layer, role)
        assert tab.inner_text(".fxg-panel h2") == layer
        marked = tab.locator(".fxg-picked")
        assert marked.get_attribute("data-name") == layer
        assert marked.get_attribute("aria-pressed") == "true"


def test_folded_modules_light_up_with_the_layers_inside(
    drawn: Callable[[str], Drawn], show: Callable[..., Any]
) -> None:
    network = drawn("resnet18")
    tab = show(network.file)
    (group,) = network.deps.group_of("conv1")
    tab.locator("[data-name=conv1]").click()
    badges = "boxes => boxes.map(box => [box.dataset.name, box.querySelector('.fxg-badge').textContent])"
    lit = dict(tab.eval_on_selector_all(".fxg-module.fxg-lit", badges))
    members = {*group.producers, *group.followers, *group.consumers}
    for module in ("layer1.0", "layer1.1", "layer2.0"):
        inside = sum(member.startswith(f"{module}.") for member in members)
        assert lit[module] == f"{inside} layers"
    assert "layer3.0" not in lit


# What the panel and the slider say ------------------------------------------------------------------------------------


def test_the_panel_says_what_is_known_of_a_layer(drawn: Callable[[str], Drawn], show: Callable[..., Any]) -> None:
    network = drawn("resnet18")
    tab = show(network.file)
    _find(tab, "layer2.0.conv2")
    text = tab.inner_text(".fxg-panel")
    (group,) = network.deps.group_of("layer2.0.conv2")
    for name in (*group.producers, *group.followers, *group.consumers):
        assert name in text
    assert network.deps.explain("layer2.0.conv2") in tab.locator(".fxg-explain").text_content()
    for fact in ("Kernel\n3×3", "Channels in\n128", "Channels out\n128", "Parameters\n147,456", "MACs\n9.44"):
        assert fact in text
    tab.locator(".fxg-panel").get_by_role("button", name="layer2.1.conv2").click()
    assert tab.inner_text(".fxg-panel h2") == "layer2.1.conv2"
    _find(tab, "fc")
    assert network.deps.group_of("fc")[0].frozen in tab.inner_text(".fxg-why")


@pytest.mark.parametrize(
    ("name", "steps"), [("resnet18", (6, 19)), ("densenet201", (10,)), ("shufflenet_v2_x1_0", (7,))]
)
def test_the_slider_says_what_the_pruned_network_has(
    name: str, steps: tuple[int, ...], drawn: Callable[[str], Drawn], show: Callable[..., Any]
) -> None:
    network = drawn(name)
    tab = show(network.file)
    tab.focus("[data-fxg=ratio]")
    for step in steps:
        while int(tab.input_value("[data-fxg=ratio]")) < step:
            tab.keyboard.press("ArrowRight")
        plan = fxprune.plan_channels(network.deps, 0.05 * step)
        small = fxprune.profile(plan.apply(network.model), network.inputs)
        exact = tab.eval_on_selector_all("[data-exact]", "all => all.map(one => Number(one.dataset.exact))")
        assert exact == [small.parameters, small.macs]
        assert tab.inner_text("[data-fxg=ratio-value]") == f"{5 * step}\u202f%"
    layer = network.deps.prunable[0].producers[0]
    assert plan.layers[layer].outputs is not None
    before, after = plan.layers[layer].size[1], len(plan.layers[layer].outputs)
    assert _find(tab, layer).locator(".fxg-count").text_content() == f"{before}\u2009→\u2009{after}"


def test_a_plan_is_shown_until_the_slider_is_moved(
    drawn: Callable[[str], Drawn], show: Callable[..., Any], tmp_path: Path
) -> None:
    network = drawn("resnet18")
    plan = fxprune.plan_channels(network.deps, {"layer3.0.conv1": 0.75})
    (file := tmp_path / "plan.html").write_text(pages.page_html(plan), encoding="utf-8")
    small = fxprune.profile(plan.apply(network.model), network.inputs)
    tab = show(file)
    exact = "all => all.map(one => Number(one.dataset.exact))"
    assert tab.eval_on_selector_all("[data-exact]", exact) == [small.parameters, small.macs]
    assert _find(tab, "layer3.0.conv1").locator(".fxg-count").text_content() == "256\u2009→\u200964"
    assert "128\u2009→\u2009128" not in tab.inner_text(".fxg-panel")
    tab.focus("[data-fxg=ratio]")
    tab.keyboard.press("End")
    assert tab.eval_on_selector_all("[data-exact]", exact) != [small.parameters, small.macs]
    tab.click("[data-fxg=reset]")
    assert tab.eval_on_selector_all("[data-exact]", exact) == [small.parameters, small.macs]


def test_a_network_with_nothing_to_prune_says_so(show: Callable[..., Any], tmp_path: Path) -> None:
    deps = fxprune.DependencyGraph.from_model(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 8, 8))
    (file := tmp_path / "still.html").write_text(pages.page_html(deps), encoding="utf-8")
    tab = show(file)
    assert "none of their channels can go" in tab.inner_text(".fxg-panel")
    assert deps.groups[0].frozen in tab.inner_text(".fxg-panel")
    assert tab.locator("[data-fxg=ratio]").count() == 0


# Search and folding ---------------------------------------------------------------------------------------------------


def test_search_finds_names_and_kinds(drawn: Callable[[str], Drawn], show: Callable[..., Any]) -> None:
    network = drawn("densenet201")
    tab = show(network.file)
    layer = "features.denseblock3.denselayer17.conv2"
    assert tab.locator(f"[data-name='{layer}']").count() == 0
    box = _find(tab, layer)
    assert box.is_visible()
    assert "fxg-picked" in box.get_attribute("class")
    assert box.evaluate("box => box === document.activeElement")
    tab.keyboard.press("/")
    tab.keyboard.type("batchnorm2d denselayer17")
    options = tab.locator("[role=option]")
    assert sorted(options.locator(".fxg-row-name").all_text_contents()) == sorted(
        b.name for b in network.scene.blocks if b.kind == "BatchNorm2d" and "denselayer17" in b.name
    )
    tab.fill("[role=combobox]", "no such layer")
    assert options.count() == 0
    assert "No layer" in tab.inner_text("[role=listbox]")


@pytest.mark.parametrize("name", NETWORKS)
def test_folding(name: str, drawn: Callable[[str], Drawn], show: Callable[..., Any]) -> None:
    network = drawn(name)
    tab = show(network.file)
    first = _boxes(tab)
    assert 10 <= first <= 34
    module = tab.locator(".fxg-module").first
    inside, path = module.get_attribute("aria-label"), module.get_attribute("data-name")
    module.locator(".fxg-chevron").click(force=True)
    assert path not in tab.eval_on_selector_all(".fxg-box", "all => all.map(one => one.dataset.name)")
    assert _boxes(tab) > first
    tab.get_by_role("button", name=f"Fold {path}", exact=True).click()
    assert _boxes(tab) == first
    assert tab.locator(f".fxg-module[data-name='{path}']").get_attribute("aria-label") == inside
    while tab.locator("[data-fxg=fold]").is_enabled():
        tab.click("[data-fxg=fold]")
    top = {block.path[:1] if len(block.path) > 1 else block.name for block in network.scene.blocks}
    assert _boxes(tab) == len(top)


# How it looks ---------------------------------------------------------------------------------------------------------

CLIPS = ".fxg-svg, .fxg-panel"


@pytest.mark.parametrize("name", NETWORKS)
def test_no_texts_overlap_and_nothing_scrolls_sideways(
    name: str, drawn: Callable[[str], Drawn], show: Callable[..., Any]
) -> None:
    network = drawn(name)
    tab = show(network.file)
    assert overlaps(tab, CLIPS) == []
    tab.click("[data-fxg=unfold-all]")
    _find(tab, max(network.deps.prunable, key=lambda group: len(group.followers)).producers[0])
    tab.focus("[data-fxg=ratio]")
    tab.keyboard.press("End")
    assert overlaps(tab, CLIPS) == []
    for width in (1280, 900, 420):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("document.querySelector('.fxg').scrollWidth") <= width
        assert overlaps(tab, CLIPS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_both_schemes(scheme: str, drawn: Callable[[str], Drawn], show: Callable[..., Any]) -> None:
    tab = show(drawn("resnet18").file, color_scheme=scheme)
    names = ("paper", "surface", "hover", "ink", "muted", "accent", "good", "edge")
    colours = {
        name: tab.evaluate(f"getComputedStyle(document.querySelector('.fxg')).getPropertyValue('--fxg-{name}')")
        for name in names
    }
    light = {name: _luminance(colour.strip()) for name, colour in colours.items()}
    assert (light["paper"] > 0.5) == (scheme == "light")
    for ground in ("paper", "surface", "hover"):
        for word in ("ink", "muted", "accent", "good"):
            assert _contrast(light[word], light[ground]) >= 4.5, (word, ground)
        assert _contrast(light["edge"], light[ground]) >= 3, ground


def _luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


# Keys -----------------------------------------------------------------------------------------------------------------


def test_the_keyboard_reaches_everything(drawn: Callable[[str], Drawn], show: Callable[..., Any]) -> None:
    tab = show(drawn("resnet18").file)
    here = "document.activeElement.dataset.name || document.activeElement.dataset.fxg || document.activeElement.tagName"
    seen = []
    for _ in range(10):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate(here))
    assert seen[:9] == ["INPUT", "fold", "unfold", "unfold-all", "x", "zoom-out", "zoom-in", "fit", "keys"]
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Enter")
    assert tab.locator(".fxg-keys").is_visible()
    tab.keyboard.press("Escape")
    assert not tab.locator(".fxg-keys").is_visible()
    tab.focus("[data-name=x]")
    keys = ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowDown")
    walked = [(tab.keyboard.press(key), tab.evaluate(here))[1] for key in keys]
    assert walked == ["conv1", "bn1", "maxpool", "layer1.0", "maxpool", "layer1.0"]
    ring = "getComputedStyle(document.activeElement.querySelector('.fxg-outline')).stroke"
    assert tab.evaluate(ring) != "none"
    tab.keyboard.press("Enter")
    assert tab.evaluate(here) == "layer1.0.conv1"
    tab.keyboard.press("Enter")
    assert tab.evaluate(here) == "H2"
    assert tab.inner_text(".fxg-panel h2") == "layer1.0.conv1"
    tab.keyboard.press("Escape")
    assert tab.evaluate(here) == "layer1.0.conv1"
    assert tab.locator(".fxg-lit").count() == 0
    tab.keyboard.press("f")
    assert tab.evaluate(here) == "layer1.0"
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "combobox"


def test_arrows_go_sideways_between_branches(drawn: Callable[[str], Drawn], show: Callable[..., Any]) -> None:
    tab = show(drawn("shufflenet_v2_x1_0").file)
    tab.click("[data-fxg=unfold-all]")
    _find(tab, "stage2.0.branch2.3")
    names = []
    for key in ("ArrowRight", "ArrowLeft"):
        tab.keyboard.press(key)
        names.append(tab.evaluate("document.activeElement.dataset.name"))
    assert {name.rpartition(".")[0] for name in names} == {"stage2.0.branch1", "stage2.0.branch2"}


def test_the_wheel_moves_and_zooms_and_the_mouse_drags(drawn: Callable[[str], Drawn], show: Callable[..., Any]) -> None:
    tab = show(drawn("resnet18").file)

    def stage() -> tuple[float, ...]:
        return tuple(map(float, re.findall(r"[-\d.]+", tab.get_attribute(".fxg-stage", "transform"))))

    x, y, scale = stage()
    tab.mouse.move(300, 300)
    tab.mouse.wheel(0, 100)
    assert stage() == pytest.approx((x, y - 100, scale))
    tab.mouse.down()
    tab.mouse.move(340, 330, steps=4)
    tab.mouse.up()
    assert stage() == pytest.approx((x + 40, y - 70, scale))
    assert tab.locator(".fxg-picked").count() == 0
    tab.keyboard.down("Control")
    tab.mouse.wheel(0, -100)
    tab.keyboard.up("Control")
    assert stage()[2] > scale
    tab.mouse.click(894, 385)  # near the end of the strip
    assert tab.locator("[data-name=fc]").is_visible()


# Names are data -------------------------------------------------------------------------------------------------------


def test_a_name_that_is_markup_is_shown_as_text(show: Callable[..., Any], tmp_path: Path) -> None:
    layers = OrderedDict([(HOSTILE, nn.Conv2d(3, 8, 3)), ("</script><b>", nn.ReLU()), ("last", nn.Conv2d(8, 4, 3))])
    inner = nn.Sequential(layers)
    model = nn.Sequential(OrderedDict([(SCRIPT, inner), ("head", nn.Conv2d(4, 2, 1))]))
    deps = fxprune.DependencyGraph.from_model(model, torch.zeros(1, 3, 16, 16))
    (file := tmp_path / "hostile.html").write_text(pages.page_html(deps), encoding="utf-8")
    assert "\u2028" not in file.read_text(encoding="utf-8")
    tab = show(file)
    name = f"{SCRIPT}.{HOSTILE}"
    assert tab.locator(".fxg-name").first.evaluate("text => text.childElementCount") == 0
    assert tab.locator(".fxg-frame-name").text_content() == SCRIPT
    tab.locator(".fxg-layer").first.click()
    assert tab.locator(".fxg-panel h2").text_content() == name
    assert deps.explain(name) in tab.locator(".fxg-explain").text_content()
    assert tab.evaluate("document.querySelectorAll('b').length") == 2, "those of the two totals"
    tab.keyboard.press("/")
    tab.keyboard.type("alert(1)")
    assert tab.locator("[role=option]").first.locator(".fxg-row-name").text_content() == name


@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028\u2029", "&lt;", "'\"\\", "\x00\x7f"])
def test_json_in_a_script_element_stays_inside_it(text: str) -> None:
    written = pages.script_json({text: [text]})
    assert not re.search("[<>&\u2028\u2029]", written)
    assert json.loads(written) == {text: [text]}


# What is in the file --------------------------------------------------------------------------------------------------


def test_vendored_files_are_what_their_table_says() -> None:
    folder = Path(pages.__file__).parent / "vendor"
    rows = re.findall(
        r"^\| (\S+\.js) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\w{64}) \|$", (folder / "README.md").read_text(), re.M
    )
    assert {file for file, *_ in rows} == {path.name for path in folder.glob("*.js")}
    for file, package, version, licence, text, digest in rows:
        code = (folder / file).read_bytes()
        assert hashlib.sha256(code).hexdigest() == digest, file
        assert f"v{version} " in code[:120].decode() or f'"{version}"' in code.decode(), (package, version)
        named = {
            "MIT": "Permission is hereby granted",
            "ISC": "Permission to use, copy",
            "BSD-3-Clause": "Redistribution",
        }
        assert named[licence] in (folder / text).read_text()


def test_the_page_holds_every_licence(drawn: Callable[[str], Drawn]) -> None:
    html = drawn("resnet18").file.read_text(encoding="utf-8")
    for text in (Path(pages.__file__).parent / "vendor").glob("LICENSE-*.txt"):
        assert text.read_text(encoding="utf-8") in html
    assert "sourceMappingURL" not in html


def test_two_graphs_stand_in_one_page(show: Callable[..., Any], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    deps = fxprune.DependencyGraph.from_model(model, torch.zeros(1, 3, 16, 16))
    graphs = [
        pages.GraphComponent.of(subject, key=key) for subject, key in ((deps, "a"), (fxprune.plan_channels(deps), "b"))
    ]
    scripts = "".join(f"<script>{script}</script>" for script in graphs[0].scripts)
    styles = f"<style>{graphs[0].styles} .fxg {{ --fxg-height: 500px; }}</style>"
    html = f"<!DOCTYPE html>{styles}{graphs[0].html('h3')}{graphs[1].html('h3')}{scripts}"
    (file := tmp_path / "two.html").write_text(html, encoding="utf-8")
    tab = show(file)
    assert tab.evaluate("[...document.querySelectorAll('.fxg')].map(one => one.clientHeight)") == [500, 500]
    ids = tab.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))
    tab.locator(".fxg").nth(1).locator("[data-name='0']").click()
    assert tab.locator(".fxg").nth(0).locator(".fxg-lit").count() == 0
    assert tab.locator(".fxg").nth(1).locator(".fxg-lit").count() == 2


# The ways to it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [None, 1, 2])
def test_draw_writes_a_page(depth: int | None, show: Callable[..., Any], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3))))
    deps = fxprune.DependencyGraph.from_model(model, torch.zeros(1, 3, 16, 16))
    tab = show(fxprune.draw(deps, tmp_path / "graph.html", depth))
    assert _boxes(tab) == {None: 5, 1: 3, 2: 4}[depth]
    with pytest.raises(fxprune.ArgumentError, match="depth must be an integer of at least 1"):
        fxprune.draw(deps, tmp_path / "none.html", 0)
    assert not (tmp_path / "none.html").exists()


def test_the_command_writes_what_the_suffix_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (tmp_path / "graph.html", tmp_path / "graph.dot"):
        assert run("graph", "resnet18", "-o", str(file), "--ratio=0.5", "--input-size=3x64x64") == 0
        assert f"written to {file}" in capsys.readouterr().out
        assert file.stat().st_size > 5_000
    data = re.search(r'<script type="application/json">(.*)</script>', (tmp_path / "graph.html").read_text())
    assert data is not None
    assert json.loads(data[1])["plan"]["ratio"] == pytest.approx(0.5, abs=0.01)
    assert run("graph", "resnet18", "-o", str(tmp_path / "graph.doc"), "--input-size=3x64x64") == 2
    assert "those that do are .svg, .png" in capsys.readouterr().err
