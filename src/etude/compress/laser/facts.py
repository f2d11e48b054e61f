"""Real facts for the études: two relations with paraphrases, written out as data."""

from __future__ import annotations

from dataclasses import dataclass

CAPITALS = """France Paris;Germany Berlin;Italy Rome;Spain Madrid;Portugal Lisbon;Poland Warsaw;Austria Vienna;Hungary Budapest;Greece Athens;
Sweden Stockholm;Norway Oslo;Denmark Copenhagen;Finland Helsinki;Ireland Dublin;Russia Moscow;Ukraine Kyiv;Romania Bucharest;Bulgaria Sofia;
Serbia Belgrade;Croatia Zagreb;Belgium Brussels;Switzerland Bern;Iceland Reykjavik;Turkey Ankara;Egypt Cairo;Morocco Rabat;Algeria Algiers;
Tunisia Tunis;Libya Tripoli;Kenya Nairobi;Ethiopia Addis Ababa;Ghana Accra;Nigeria Abuja;Senegal Dakar;Uganda Kampala;Somalia Mogadishu;
Zimbabwe Harare;Angola Luanda;Japan Tokyo;China Beijing;India New Delhi;Pakistan Islamabad;Bangladesh Dhaka;Nepal Kathmandu;Thailand Bangkok;
Vietnam Hanoi;Indonesia Jakarta;Malaysia Kuala Lumpur;Philippines Manila;Mongolia Ulaanbaatar;Iran Tehran;Iraq Baghdad;Syria Damascus;
Lebanon Beirut;Jordan Amman;Afghanistan Kabul;Canada Ottawa;Mexico Mexico City;Cuba Havana;Peru Lima;Chile Santiago;Argentina Buenos Aires;
Colombia Bogotá;Australia Canberra"""
CURRENCIES = """Japan yen;China yuan;India rupee;Pakistan rupee;Nepal rupee;Indonesia rupiah;Thailand baht;Vietnam dong;Malaysia ringgit;
South Korea won;Russia ruble;Turkey lira;Poland zloty;Hungary forint;Sweden krona;Norway krone;Denmark krone;Switzerland franc;Germany euro;
France euro;Italy euro;Spain euro;Mexico peso;Chile peso;Cuba peso;Philippines peso;Brazil real;Peru sol;Canada dollar;Australia dollar;
Israel shekel;Iran rial;Iraq dinar;Kuwait dinar;Jordan dinar;Egypt pound;South Africa rand;Nigeria naira;Kenya shilling;Uganda shilling;
Ghana cedi;Ukraine hryvnia;Romania leu;Bulgaria lev;Bangladesh taka;Saudi Arabia riyal;Ethiopia birr;Morocco dirham"""
PARAPHRASES = {
    "capital": ("The capital of {} is", "The capital city of {} is", "{}'s capital is", "The government of {} has its seat in the city of"),
    "currency": ("The currency of {} is the", "The official currency of {} is the", "In {}, people pay with the", "Money in {} is called the"),
}


@dataclass(frozen=True)
class Relation:
    """Facts of one kind: the first prompt form asks, the others are paraphrases."""

    name: str
    subjects: tuple[str, ...]
    objects: tuple[str, ...]

    def prompts(self, form: int = 0) -> list[str]:
        """One prompt a fact in the given paraphrase."""
        return [PARAPHRASES[self.name][form].format(subject) for subject in self.subjects]

    def answers(self) -> list[str]:
        """The gold answers, with the space that stands before them."""
        return [f" {answer}" for answer in self.objects]


def relation(name: str, most: int | None = None) -> Relation:
    """The facts of "capital" or "currency"; multi-word names are split where the answer's list says so."""
    table = {"capital": CAPITALS, "currency": CURRENCIES}[name]
    pairs = [entry.strip() for entry in table.replace("\n", "").split(";")][:most]
    split = [_halves(pair, name) for pair in pairs]
    return Relation(name, tuple(subject for subject, _ in split), tuple(answer for _, answer in split))


def _halves(pair: str, name: str) -> tuple[str, str]:
    """Countries of the first table are one word, currencies of the second."""
    subject, _, answer = pair.partition(" ") if name == "capital" else pair.rpartition(" ")
    return subject, answer
