"""Documents, models, doctor and audit: what the commands say, on pages."""

from tests.studio.made_models import stock


def test_models_are_listed_and_removed_only_when_allowed(page, studio):
    stock(studio.home)
    page.goto("/models")
    page.get_by_role("rowheader", name="twin").wait_for()
    page.get_by_label("Name of the model").fill("twin")
    page.get_by_role("button", name="Remove").click()
    page.get_by_text("nothing was removed").first.wait_for()
    assert (studio.home / "models/twin").is_dir()
    page.get_by_label("Delete its files").check()
    page.get_by_role("button", name="Remove").click()
    page.get_by_text("twin is removed").wait_for(timeout=60_000)
    assert not (studio.home / "models/twin").exists()
    stock(studio.home)


def test_nothing_is_pulled_without_consent(page):
    page.goto("/models")
    page.get_by_label("Name, owner/name").fill("smollm2")
    page.get_by_role("button", name="Pull", exact=True).click()
    page.get_by_text("allow the connection first").first.wait_for()


def test_the_doctor_says_what_is_wrong_with_a_run(page):
    page.goto("/doctor")
    page.get_by_label("Subject").fill("burst")
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_text("likely", exact=True).first.wait_for(timeout=90_000)


def test_the_ledger_is_shown_in_a_sentence(page):
    page.goto("/doctor")
    page.get_by_role("region", name="Ledgers").get_by_text("studio").first.wait_for()
    page.get_by_label("Connections of").fill("studio")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("machine").last.wait_for()
    assert page.get_by_role("region", name="studio").count() or page.get_by_role("region").count() > 1


def test_without_a_collection_the_page_leads_to_the_form(page):
    page.goto("/documents")
    page.get_by_role("link", name="Index a folder").click()
    page.get_by_text("settle index").first.wait_for()
