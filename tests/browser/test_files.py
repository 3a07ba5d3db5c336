"""The files' page: what is uploaded, what jobs measured, what is wrong with a file."""

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import NewPage


def test_a_file_with_problems_tells_its_lines_and_is_deleted(new_page: NewPage, tmp_path: Path) -> None:
    page = new_page(at="#/files")
    broken = tmp_path / "broken<b>.jsonl"
    broken.write_text('{"text": "one"}\n{"text": 7}\nnot json\n')
    page.get_by_label("Drop files here").set_input_files(broken)
    drawer = page.get_by_role("dialog", name="broken<b>.jsonl")
    problems = drawer.get_by_role("region", name="Problems of the file")
    expect(problems.locator("tbody tr")).to_have_count(2)
    expect(problems.locator("tbody tr").first).to_contain_text('2text"text" must be a string')
    drawer.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the file").click()
    expect(page.locator("#toasts")).to_contain_text("is deleted")
    expect(page.get_by_role("button", name="broken<b>.jsonl")).to_have_count(0)


def test_what_jobs_measured_is_kept_apart(new_page: NewPage, jobs: list[str]) -> None:
    page = new_page(at="#/files")
    page.locator("tbody tr").first.wait_for()
    expect(page.get_by_role("button", name="step_metrics.csv")).to_have_count(0)
    page.get_by_role("button", name="Measured by jobs").click()
    expect(page.get_by_role("button", name="step_metrics.csv").first).to_be_visible()
    assert "kind=fine-tune-results" in page.url
    page.locator(f"a[href='#/jobs/{jobs[0]}']").click()
    page.get_by_role("button", name=jobs[0]).wait_for()


def test_a_file_that_is_gone_leaves_the_others(new_page: NewPage, file_id: str) -> None:
    page = new_page(at="#/files?id=file-gone", allow=("404",))
    expect(page.locator("#toasts")).to_contain_text("No such file")
    page.locator("tbody tr").first.wait_for()
    assert page.url.endswith("#/files")


def test_a_name_turns_nothing_around_but_itself(new_page: NewPage, tmp_path: Path) -> None:
    page = new_page(at="#/new")
    odd = tmp_path / "rice\u202etxt.jsonl"
    odd.write_text('{"text": "Stir the rice"}\n' * 24)
    page.get_by_label("Drop or choose a training file").set_input_files(odd)
    chosen = page.locator("select[name=training_file] option:checked")
    expect(chosen).to_have_text(f"\u2068{odd.name}\u2069 · 24 rows")
