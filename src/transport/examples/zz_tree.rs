//! temp
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let t = Instant::now();
    let mut f = std::fs::File::create(&a[2]).unwrap();
    let s = transship_transport::tree::capture_dir(a[1].as_ref(), &mut f).unwrap();
    println!("{s:?} capture {:?}", t.elapsed());
    let t = Instant::now();
    std::fs::create_dir_all(&a[3]).unwrap();
    transship_transport::tree::apply_spool(a[2].as_ref(), a[3].as_ref()).unwrap();
    println!("apply {:?}", t.elapsed());
    let t = Instant::now();
    transship_transport::tree::capture_dir(a[1].as_ref(), &mut std::io::sink()).unwrap();
    println!("capture to nothing {:?}", t.elapsed());
}
