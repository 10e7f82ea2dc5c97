//! What could help, in the words of the command line: commands and options are named here and nowhere below.

use klpfarm_engine::{Error, Note, Remedy};
use klpfarm_report::FolderError;

/// The text of an error, and behind it what could help.
pub(crate) fn of_error(error: &Error) -> String {
    let of_library = || error.cause().downcast_ref::<FolderError>().and_then(of_folder);
    with(error.to_string(), error.remedy().map(of_remedy).or_else(of_library))
}

/// The text of a note, and behind it what could help.
pub(crate) fn of_note(note: &Note) -> String {
    with(note.text.clone(), note.remedy.as_ref().map(of_remedy))
}

fn with(text: String, hint: Option<String>) -> String {
    match hint {
        Some(hint) => format!("{text}: {hint}"),
        None => text,
    }
}

fn of_remedy(remedy: &Remedy) -> String {
    match remedy {
        Remedy::FreeDisk => "see `klpfarm gc`, or set --disk-reserve".to_owned(),
        Remedy::FewerMachines => "lower --jobs".to_owned(),
        Remedy::BuildImage(recipe) => format!("run `klpfarm image build {recipe}`"),
        Remedy::RebuildImage => "build it from its recipe with `klpfarm image build RECIPE`".to_owned(),
        Remedy::MapReach(image) => format!("run `klpfarm reach map --image {image}`"),
        Remedy::WriteWorkload => {
            "write a workload that does (docs/workloads.md), and measure it with `klpfarm reach map --workload FILE`"
                .to_owned()
        }
        Remedy::NewKey => "create a key pair with `klpfarm key new FILE`".to_owned(),
        Remedy::SignVerdict => "sign it with `klpfarm sign RUN --key KEY`".to_owned(),
        Remedy::SignPrior => {
            "have the owner of the key sign it where it was made (`klpfarm sign RUN --key KEY`), and keep verdict.json and verdict.dsse.json together"
                .to_owned()
        }
        Remedy::JudgeAgain(dir) => format!("compare with `klpfarm judge {}`", dir.display()),
        Remedy::IndexRun(dir) => format!("to add it, run `klpfarm db rebuild --runs {}`", dir.display()),
    }
}

fn of_folder(error: &FolderError) -> Option<String> {
    let FolderError::NotEmpty(dir) = error else { return None };
    let dir = dir.display();
    Some(format!("name another one with --out, or, if a run was cut off in it, run `klpfarm resume {dir}`"))
}
