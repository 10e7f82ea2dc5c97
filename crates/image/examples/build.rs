//! Build an image, or a module for one: `build RECIPE [SOURCE_DIR OUT_DIR]`. State is under `KLPFARM_HOME`.

use std::path::{Path, PathBuf};

use klpfarm_image::{BuildOptions, Progress, Store, find};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let home = std::env::var_os("KLPFARM_HOME").map(PathBuf::from).ok_or("KLPFARM_HOME is not set")?;
    let recipe = args.first().ok_or("which recipe?")?;
    let store = Store::open(&home)?;
    let start = std::time::Instant::now();
    let mut show = |news: Progress| match news {
        Progress::Step { number, total, title } => {
            eprintln!("{:6.1} s [{number}/{total}] {title}", start.elapsed().as_secs_f32());
        }
        Progress::Line(line) => eprintln!("{:6.1} s   {line}", start.elapsed().as_secs_f32()),
        other => eprintln!("{other:?}"),
    };
    let options = BuildOptions { force: std::env::var_os("FORCE").is_some(), tools: None };
    let image = match store.build(&find(recipe, &[])?, &options, &mut show).await {
        Ok(image) => image,
        Err(error) => return Err(error.to_string().into()),
    };
    println!("{} in {:.1} s: {}", image.id(), start.elapsed().as_secs_f32(), image.dir.display());
    if let [_, source, out] = args.as_slice() {
        let module =
            image.build_module(Path::new(source), Path::new(out)).await.map_err(|e| e.to_string())?;
        println!("{}", module.display());
    }
    Ok(())
}
